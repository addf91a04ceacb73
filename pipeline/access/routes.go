package access

import (
	"net/http"
	"slices"
	"strings"
)

// A Route is a route of a program, with the role that it needs.
type Route struct {
	Program string // "" means all programs
	Pattern string // method and path, as http.ServeMux has them
	Role    Role
}

// The programs that have servers.
const (
	Processor = "processor"
	Projector = "projector"
	Producer  = "producer"
)

// Routes returns all routes of all programs. The table of docs/security.md and the OpenAPI
// documents are made from it, and every server enforces it. A request for a path that is not
// here needs a caller that is known, with any role.
func Routes() []Route {
	return []Route{
		{"", "GET /livez", Public},
		{"", "GET /readyz", Public},
		{"", "GET /startupz", Public},
		{"", "GET /version", Read},
		{"", "GET /metrics", Read},
		{"", "GET /debug/pprof/", Admin},

		{Producer, "POST /v1/events", Write},
		{Producer, "GET /v1/openapi.json", Read},

		{Processor, "GET /v1/tap", Admin}, // it shows events before fields are masked

		{Projector, "GET /v1/openapi.json", Read},
		{Projector, "GET /v1/projections", Read},
		{Projector, "GET /v1/projections/{name}", Read},
		{Projector, "GET /v1/projections/{name}/feed", Read},
		{Projector, "GET /v1/projections/{name}/{id}", Read},
		{Projector, "GET /v1/projections/{name}/{id}/history", Read},
		{Projector, "GET /v1/projections/{name}/{id}/why", Read},
		{Projector, "GET /v1/projections/{name}/{id}/diff", Read},
		{Projector, "GET /v1/events", Read},
		{Projector, "GET /v1/events/{id}", Read},
		{Projector, "GET /v1/blocked/{name}", Read},
		{Projector, "POST /v1/blocked/{name}/{id}/release", Admin},

		{Projector, "GET /internal/v1/versions", Worker},
		{Projector, "GET /internal/v1/versions/{name}/{version}/{partition}", Worker},
		{Projector, "GET /internal/v1/scan/{name}/{version}", Worker},
		{Projector, "GET /internal/v1/positions/{name}/{version}", Worker},
		{Projector, "GET /internal/v1/outcome/{name}/{version}", Worker},
		{Projector, "GET /internal/v1/events/{name}/{version}", Worker},
		{Projector, "GET /internal/v1/blocked/{name}/{version}", Worker},
		{Projector, "POST /internal/v1/release/{name}/{version}", Worker},
		{Projector, "GET /internal/v1/feed/{name}/{version}", Worker},
		{Projector, "GET /internal/v1/states/{name}/{id}", Worker},
		{Projector, "GET /internal/v1/forgotten/{name}/{id}", Worker},
	}
}

// A Table finds the role that a request needs. Several goroutines can use it.
type Table struct {
	mux   *http.ServeMux // only finds patterns
	roles map[string]Role
}

// NewTable returns the table of a program.
func NewTable(program string) *Table {
	t := &Table{mux: http.NewServeMux(), roles: map[string]Role{}}
	for _, r := range Routes() {
		if r.Program == "" || r.Program == program {
			t.mux.Handle(r.Pattern, http.NotFoundHandler())
			t.roles[r.Pattern] = r.Role
		}
	}
	return t
}

// Patterns returns the patterns of the table, sorted by path.
func (t *Table) Patterns() []string {
	out := make([]string, 0, len(t.roles))
	for p := range t.roles {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b string) int {
		_, pathA, _ := strings.Cut(a, " ")
		_, pathB, _ := strings.Cut(b, " ")
		return strings.Compare(pathA+a, pathB+b)
	})
	return out
}

// Has reports whether the table has a pattern, or, for the path of a directory, patterns
// below it.
func (t *Table) Has(pattern string) bool {
	if _, ok := t.roles[pattern]; ok {
		return true
	}
	for p := range t.roles {
		if _, path, _ := strings.Cut(p, " "); strings.HasSuffix(pattern, "/") && strings.HasPrefix(path, pattern) {
			return true
		}
	}
	return false
}

// Methods returns the methods with which a path can be requested, sorted.
func (t *Table) Methods(r *http.Request) (out []string) {
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		other := *r
		other.Method = m
		if _, known := t.Needs(&other); known {
			out = append(out, m)
		}
	}
	return out
}

// Needs returns the role that a request needs. known is false if the table has no route
// for it.
func (t *Table) Needs(r *http.Request) (role Role, known bool) {
	_, pattern := t.mux.Handler(r)
	role, known = t.roles[pattern]
	return role, known
}
