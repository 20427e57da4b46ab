# Constrained output: grammars, regular expressions, JSON Schema; masks of allowed tokens.
target_sources(muster_model PRIVATE constraint.c constraint_mask.c constraint_run.c constraint_state.c constraint_vocab.c grammar_build.c
  grammar_class.c grammar_dfa.c grammar_expr.c grammar_gbnf.c grammar_json.c grammar_nfa.c grammar_refine.c json_schema.c
  json_schema_emit.c json_schema_format.c json_schema_number.c json_schema_object.c json_schema_shape.c regex.c)
