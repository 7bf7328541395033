// SPDX-License-Identifier: Apache-2.0
void print_ours();
void print_theirs();

int main() {
  print_ours();
  print_theirs();
}
