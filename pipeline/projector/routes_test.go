package projector

import (
	"net/http"
	"slices"
	"testing"

	"millrace/pipeline/access"
	"millrace/pipeline/projector/query"
)

// patterns records what is mounted.
type patterns []string

func (p *patterns) Handle(pattern string, _ http.Handler) { *p = append(*p, pattern) }

// Each route has a role, and each role is of a route.
func TestTheTableOfRolesHasTheRoutesOfTheProjector(t *testing.T) {
	mounted := patterns(query.Patterns())
	(&internalAPI{}).register(&mounted)
	var table []string
	for _, r := range access.Routes() {
		if r.Program == access.Projector {
			table = append(table, r.Pattern)
		}
	}
	slices.Sort(mounted)
	slices.Sort(table)
	if !slices.Equal(mounted, table) {
		t.Errorf("the projector has the routes\n%q\nand the table of roles\n%q", mounted, table)
	}
}
