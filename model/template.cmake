# Chat templates: the Jinja of model files.
target_sources(muster_model PRIVATE chat_template.c chat_template_file.c jinja_lex.c jinja_parse.c jinja_expr.c jinja_exec.c jinja_eval.c jinja_ops.c
  jinja_call.c jinja_value.c jinja_print.c jinja_text.c jinja_format.c jinja_method.c jinja_method_text.c jinja_filter_text.c
  jinja_filter_seq.c jinja_test.c)
target_link_libraries(muster_model PUBLIC PkgConfig::JANSSON)
