package topology

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline/stage"
)

// hash returns the identifier of the topology's content: of the file, of the schemas
// that it uses, and of the files of its tables.
func (l *loader) hash(args stage.Args) string {
	h := sha256.New()
	fmt.Fprintf(h, "topology 1\n")
	writeArgs(h, args)
	for _, name := range slices.Sorted(maps.Keys(l.topics)) {
		for _, s := range l.topics[name].Types {
			fmt.Fprintf(h, "type %q %q\n", name, s.String())
		}
	}
	for _, p := range l.plan.Pipelines {
		for _, o := range p.Old {
			fmt.Fprintf(h, "old %q %q\n", p.Name, o.Schema.String())
		}
	}
	for _, t := range l.plan.Tables {
		fmt.Fprintf(h, "table %q %x\n", t.Name, sha256.Sum256(t.Text))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// writeArgs writes parameters in a canonical order.
func writeArgs(w io.Writer, args stage.Args) {
	args = slices.Clone(args)
	slices.SortFunc(args, func(a, b stage.Arg) int { return strings.Compare(a.Name, b.Name) })
	for _, a := range args {
		fmt.Fprintf(w, "%q %q %d %d %v {\n", a.Name, a.Value.Text, a.Number, a.Duration, a.Flag)
		for _, word := range a.Words {
			fmt.Fprintf(w, "%q\n", word.Text)
		}
		for _, e := range a.Entries {
			fmt.Fprintf(w, "%q: %q\n", e.Key.Text, e.Value.Text)
		}
		items := slices.Clone(a.Items)
		switch a.Name {
		case "topics", "tables", "pipelines", "projections": // their order has no meaning
			slices.SortFunc(items, func(a, b stage.Item) int { return strings.Compare(a.Key.Text, b.Key.Text) })
		}
		for _, item := range items {
			fmt.Fprintf(w, "- %q\n", item.Key.Text)
			writeArgs(w, item.Args)
		}
		fmt.Fprintln(w, "}")
	}
}
