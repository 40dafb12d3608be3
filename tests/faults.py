"""Faults of kernels, each by its name: the candidate that has it, and what the reason of its refusal says."""

from __future__ import annotations

import os

from planted import PACK, RIGHT, TIGHT, Planted

HUGE = "20ull << 30"
SEGMENT = "ended by SIGSEGV"

# Called often enough by checks and warming up, it then does something else: only timing can see that.
LATER = "if (calls > 8) {{ {} }} " + RIGHT

WRONG: dict[str, tuple[Planted, str]] = {
    "one tile with the weights of another": (
        Planted(
            """compute(x, w, y);
            struct args a = {x, w, y, 0};
            for (int i = 16; i < 32; ++i) y[2 * PIXELS + i] = dot(&a, 1, i);
            return 0;"""
        ),
        "its values are wrong",
    ),
    "an error just above the bound": (
        Planted("compute(x, w, y); y[70] *= 1.00001f; return 0;"),
        "its values are wrong",
    ),
    "an error below the bound, of whole numbers": (
        Planted("compute(x, w, y); for (int i = 0; i < OC * PIXELS; ++i) y[i] = nextafterf(y[i], INFINITY); return 0;"),
        "its values are wrong",
    ),
    "no numbers": (Planted("compute(x, w, y); y[5] = NAN; return 0;"), "holds no value"),
    "an infinity": (Planted("compute(x, w, y); y[5] = INFINITY; return 0;"), "its values are wrong"),
    "columns of the tail skipped": (
        Planted(
            """struct args a = {x, w, y, 0};
            for (int o = 0; o < OC; ++o)
              for (int i = 0; i < PIXELS / 16 * 16; ++i) y[o * PIXELS + i] = dot(&a, o, i);
            return 0;"""
        ),
        "not written",
    ),
    "the last element not written": (
        Planted(
            """struct args a = {x, w, y, 0};
            for (int i = 0; i < OC * PIXELS - 1; ++i) y[i] = dot(&a, i / PIXELS, i % PIXELS);
            return 0;"""
        ),
        "not written",
    ),
    "nothing done": (Planted("return 0;"), "not written"),
    "a sum that does not begin at zero": (
        Planted(
            """struct args a = {x, w, y, 0};
            for (int i = 0; i < OC * PIXELS; ++i) y[i] += dot(&a, i / PIXELS, i % PIXELS);
            return 0;"""
        ),
        "holds no value",
    ),
    "a temporary read before it is written": (
        Planted(
            "float* t = take(64); compute(x, w, y); y[9] += t[3]; give(t); return 0;",
            workspace_bytes=64,
        ),
        "holds no value",
    ),
    "4 bytes past the end": (
        Planted("compute(x, w, y); y[OC * PIXELS] = 1; return 0;"),
        "writes outside",
    ),
    "4 bytes before the start": (Planted("compute(x, w, y); y[-1] = 1; return 0;"), "writes outside"),
    "4 bytes past the end of a temporary": (
        Planted(
            "char* t = take(60); memset(t, 0, 64); give(t); return compute(x, w, y);",
            workspace_bytes=64,
        ),
        "writes outside",
    ),
    "4 bytes past the end of the packed weights": (
        Planted(pack="packed[OC * IC] = 1;" + PACK),
        "writes outside",
    ),
    "a value from just behind x": (
        Planted("compute(x, w, y); y[9] += 0 * x[IC * PIXELS]; return 0;"),
        "holds no value",
    ),
    "a value from just before x": (Planted("compute(x, w, y); y[9] += 0 * x[-1]; return 0;"), "holds no value"),
    "a value from behind the packed weights": (
        Planted("compute(x, w, y); y[9] += 0 * w[IC * OC]; return 0;"),
        "holds no value",
    ),
    "two tasks add to the same elements": (
        Planted(
            "memset(y, 0, sizeof(float) * OC * PIXELS); struct args a = {x, w, y, 0}; return launch(part, &a);",
            """static int part(int id, struct env* e, void* closure) {
              const struct args* a = closure;
              for (int o = 0; o < OC; ++o)
                for (int i = 0; i < PIXELS; ++i)
                  for (int c = IC * id / e->num; c < IC * (id + 1) / e->num; ++c)
                    a->y[o * PIXELS + i] += a->w[o * IC + c] * a->x[c * PIXELS + i];
              return 0;
            }""",
        ),
        "two of its tasks write the same place",
    ),
    "two tasks with one temporary": (
        Planted(
            """struct args a = {x, w, y, take(4 * PIXELS)};
            const int code = launch(row, &a);
            give(a.other);
            return code;""",
            """static int row(int id, struct env* e, void* closure) {
              const struct args* a = closure;
              for (int o = OC * id / e->num; o < OC * (id + 1) / e->num; ++o) {
                for (int i = 0; i < PIXELS; ++i) a->other[i] = dot(a, o, i);
                memcpy(a->y + o * PIXELS, a->other, sizeof(float) * PIXELS);
              }
              return 0;
            }""",
            workspace_bytes=256,
        ),
        "two of its tasks write the same place",
    ),
    "a task that reads what another writes": (
        Planted(
            "struct args a = {x, w, y, 0}; return launch(after, &a);",
            """static int after(int id, struct env* e, void* closure) {
              const struct args* a = closure;
              share(id, e, closure);
              if (id == 1 && a->y[0] != dot(a, 0, 0)) a->y[OC * PIXELS - 1] = 0;
              return 0;
            }""",
        ),
        "a task of it needs what another one writes",
    ),
    "wrong with two threads": (
        Planted(
            "struct args a = {x, w, y, 0}; return launch(half, &a);",
            """static int half(int id, struct env* e, void* closure) {
              channels(closure, id ? OC / 2 + 1 : 0, e->num > 1 && !id ? OC / 2 : OC);
              return 0;
            }""",
        ),
        "not written",
    ),
    "wrong with one thread": (
        Planted(
            "struct args a = {x, w, y, 0}; return launch(half, &a);",
            """static int half(int id, struct env* e, void* closure) {
              channels(closure, id ? OC / 2 : 0, id ? OC : OC / 2);
              return 0;
            }""",
        ),
        "as one task it gives other bits",
    ),
    "other bits in the second run": (
        Planted("compute(x, w, y); if (calls % 2 == 0) y[3] = nextafterf(y[3], 9); return 0;"),
        "a second run gives other bits",
    ),
    "a wrong first run": (Planted("compute(x, w, y); if (calls == 1) y[3] += 1; return 0;"), "gives other bits"),
    "a temporary kept": (Planted("take(64); return compute(x, w, y);", workspace_bytes=64), "keeps temporaries"),
    "a temporary kept by each task": (
        Planted(
            "struct args a = {x, w, y, 0}; return launch(keeps, &a);",
            "static int keeps(int id, struct env* e, void* closure) { take(64); return share(id, e, closure); }",
            workspace_bytes=64,
        ),
        "keeps temporaries",
    ),
    "temporaries without end": (Planted("while (take(64)); return -1;", workspace_bytes=64), "keeps temporaries"),
    "more temporaries than declared": (
        Planted("void* t = take(4096); if (!t) return -1; give(t); return compute(x, w, y);", workspace_bytes=64),
        "while it was timed: it returns an error",
    ),
    "an error": (Planted("return -1;"), "it returns an error"),
    "an error of a task": (
        Planted(
            "struct args a = {x, w, y, 0}; return launch(fails, &a);",
            "static int fails(int id, struct env* e, void* closure) { return id == 1 ? -1 : share(id, e, closure); }",
        ),
        "it returns an error",
    ),
    "an error of the packing": (Planted(pack="return -1;"), "it returns an error"),
    "20 GB that are refused": (
        Planted(
            f"""char* p = mmap(0, {HUGE}, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            return p == MAP_FAILED ? -1 : compute(x, w, y);"""
        ),
        "it returns an error",
    ),
    "no computation after some runs": (
        Planted(LATER.format("return 0;")),
        "while it was timed: elements of the result are not written",
    ),
    "an earlier result after some runs": (
        Planted(
            """if (calls > 8) { memcpy(y, kept, sizeof kept); return 0; }
            compute(x, w, y); memcpy(kept, y, sizeof kept); return 0;""",
            "static float kept[OC * PIXELS];",
        ),
        "its values are wrong",
    ),
    "wrong values after some runs": (
        Planted("compute(x, w, y); if (calls > 8) y[OC * PIXELS - 1] += 1; return 0;"),
        "while it was timed: its values are wrong",
    ),
    "an error after some runs": (Planted(LATER.format("return -1;")), "while it was timed: it returns an error"),
}

CRASH: dict[str, tuple[Planted, str]] = {
    "4 bytes past the end, before a guard": (
        Planted("compute(x, w, y); y[OC * PIXELS] = 1; return 0;", problem=TIGHT),
        SEGMENT,
    ),
    "64 bytes past the end": (Planted("compute(x, w, y); memset(y + OC * PIXELS, 0, 64); return 0;"), SEGMENT),
    "a page past the end": (Planted("compute(x, w, y); y[OC * PIXELS + 1024] = 1; return 0;"), SEGMENT),
    "64 KiB past the end": (Planted("compute(x, w, y); y[OC * PIXELS + (1 << 14)] = 1; return 0;"), SEGMENT),
    "a page before the start": (Planted("compute(x, w, y); y[-1024] = 1; return 0;"), SEGMENT),
    "a temporary's next page": (
        Planted("char* t = take(64); t[64] = 1; give(t); return compute(x, w, y);", workspace_bytes=64),
        SEGMENT,
    ),
    "the guard behind x": (
        Planted("compute(x, w, y); y[9] += 0 * x[IC * PIXELS]; return 0;", problem=TIGHT),
        SEGMENT,
    ),
    "the guard behind the packed weights": (
        Planted("compute(x, w, y); y[9] += 0 * w[IC * OC]; return 0;", problem=TIGHT),
        SEGMENT,
    ),
    "a write to x": (Planted("((volatile float*)x)[3] = x[3]; return compute(x, w, y);"), SEGMENT),
    "a write to the packed weights": (Planted("((volatile float*)w)[3] = w[3]; return compute(x, w, y);"), SEGMENT),
    "a write to the weights": (Planted(pack="((volatile float*)w)[3] = w[3];" + PACK), SEGMENT),
    "a null pointer": (Planted("*(volatile int*)0 = 1; return 0;"), SEGMENT),
    "no end of the stack": (
        Planted(
            "return deeper(x, 1);",
            """static int deeper(volatile const float* x, int n) {
              volatile int here[64];
              here[0] = n;
              return deeper(x, n + 1) + here[0];
            }""",
        ),
        SEGMENT,
    ),
    "abort": (Planted("abort();"), "ended by SIGABRT: it called abort"),
    "abort with a word": (Planted('write(2, "no such tile\\n", 13); abort();'), "it said: no such tile"),
    "exit": (Planted("_exit(3);"), "ended with code 3"),
    "exit without an error": (Planted("_exit(0);"), "ended with code 0"),
    "an unknown instruction": (Planted("__builtin_trap();"), "ended by SIG"),
    "a signal": (Planted("kill(getpid(), 15); return 0;", "#include <signal.h>"), "ended by SIGTERM"),
    "20 GB that nobody asked whether they are there": (
        Planted(f"volatile char* p = malloc({HUGE}); for (uint64_t i = 0; i < {HUGE}; i += 4096) p[i] = 1; return 0;"),
        SEGMENT,
    ),
    "20 GB bit by bit": (
        Planted(
            """for (int i = 0; i < 320; ++i) {
              volatile char* p = malloc(64 << 20);
              for (int at = 0; at < 64 << 20; at += 1 << 16) p[at] = 1;
            }
            return compute(x, w, y);"""
        ),
        SEGMENT,
    ),
    "a crash after some runs": (Planted(LATER.format("abort();")), "ended by SIGABRT"),
}
if os.uname().machine == "x86_64":
    CRASH["a division by zero"] = (
        Planted("y[0] = calls / zero; return 0;"),
        "SIGFPE: it divided a whole number by zero",
    )

ENDLESS = {
    "in the kernel": Planted("for (;;) ++calls;"),
    "in the packing": Planted(pack="for (;;) ++calls;"),
    "in a thread of the pool": Planted(
        "struct args a = {x, w, y, 0}; return launch(task_1, &a);",
        """static int task_1(int id, struct env* e, void* closure) {
          while (calls > 8 && id == 1) ++zero;
          return share(id, e, closure);
        }""",
    ),
}
