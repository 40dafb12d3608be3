"""Best configs per target, one JSON line per problem, sorted."""
