package topology_test

import (
	"os"
	"strings"
	"testing"

	"millrace/pipeline/topology"
	"millrace/schemas"
)

// The examples in docs/projections.md, and examples/orders-per-user, load without
// warnings.
func TestExamplesOfProjectionsLoad(t *testing.T) {
	page, err := os.ReadFile("../../docs/projections.md")
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile("../../examples/orders-per-user/topology.yaml")
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(shipped)}
	for i, part := range strings.Split(string(page), "```") {
		if text, ok := strings.CutPrefix(part, "yaml\n"); ok && i%2 == 1 {
			texts = append(texts, text)
		}
	}
	if len(texts) < 4 {
		t.Fatalf("found only %d examples", len(texts))
	}
	for _, text := range texts {
		plan, err := topology.Load(topology.Source{Name: "example", Text: []byte(text)}, topology.Options{Schemas: schemas.FS})
		if err != nil {
			t.Errorf("%v\n%s", err, text)
			continue
		}
		for _, w := range plan.Warnings() {
			t.Errorf("%s\n%s", w.Error(), text)
		}
	}
}
