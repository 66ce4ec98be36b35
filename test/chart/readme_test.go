package chart

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "../../"

func TestReadmeIsThatOfTheValues(t *testing.T) {
	values, err := os.ReadFile(root + ValuesFile)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Readme(values)
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(root + ReadmeFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(have)); diff != "" {
		t.Errorf("%s is not made from these values: run make chart\n%s", ReadmeFile, diff)
	}
}

func TestEveryValueWantsAComment(t *testing.T) {
	got, err := Readme([]byte("# About the file.\n\n# First | one.\na: [x]\nb:\n  # Second.\n  c: 1\n  d: 2\n"))
	if err == nil || !strings.Contains(err.Error(), "value b.d (line 8) has no comment") {
		t.Errorf("error is %v, want one that names b.d", err)
	}
	for _, row := range []string{"| `a` | `[\"x\"]` | First \\| one. |\n", "| `b.c` | `1` | Second. |\n"} {
		if !strings.Contains(got, row) {
			t.Errorf("no row %q in:\n%s", row, got)
		}
	}
}
