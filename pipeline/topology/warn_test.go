package topology_test

import (
	"strings"
	"testing"
)

// A topology that loads but is suspicious yields the warnings in its .txt file.
func TestWarnings(t *testing.T) {
	for _, name := range names(t, "warn") {
		t.Run(name, func(t *testing.T) {
			plan, err := load(t, "warn", name)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, w := range plan.Warnings() {
				got.WriteString(w.Error() + " [" + w.Rule + "]\n  " + w.Hint + "\n")
			}
			golden(t, "warn", name, got.String())
		})
	}
}
