// An app that calls the mobile crate of docs/embed.md as a phone's does: `app FOLDER` writes twelve tokens of a model there,
// or says what is wrong and exits with 1.
#include "engine.h"
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  const char *folder;
  int left;
  bool failed;
} Context;

static const uint8_t *open_file(void *context, const char *name, size_t *size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", ((Context *)context)->folder, name);
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  uint8_t *bytes = malloc(*size + 1);
  if (fread(bytes, 1, *size, file) != *size) exit(2);
  fclose(file);
  return bytes; // the process is the owner
}

static bool show(void *context, const char *text, const uint32_t *heads, size_t count, bool prompt) {
  printf("%s[", text);
  for (size_t i = 0; i < count; i++) printf(i ? ", %u" : "%u", heads[i]);
  printf("]");
  return prompt || --((Context *)context)->left > 0;
}

static void failed(void *context, const char *message) {
  ((Context *)context)->failed = true;
  fprintf(stderr, "%s\n", message);
}

int main(int count, char **words) {
  if (count != 2) return 2;
  Context context = {.folder = words[1], .left = 12};
  App app = {&context, open_file, show, failed};
  Engine *engine = engine_load(app);
  if (!engine) return context.failed ? 1 : 2;
  bool written = engine_write(engine, "The king shall");
  printf("\n");
  engine_free(engine);
  return written ? 0 : 1;
}
