package projector

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"millrace/pipeline/projector/query"
)

// A projection that cannot start is held: its topic or schema is missing or has another
// form, say. The other projections of the group run and answer without it.

// setHeld sets why projections cannot start here, by name.
func (r *roster) setHeld(why map[string]error) {
	r.mu.Lock()
	r.held = why
	r.mu.Unlock()
}

// whyHeld returns why a projection cannot start here, nil if it runs.
func (r *roster) whyHeld(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held[name] == nil {
		return nil
	}
	return fmt.Errorf("projection %s cannot start: %w", name, r.held[name])
}

// anyHeld returns why projections cannot start here, nil if all run.
func (r *roster) anyHeld() error {
	r.mu.Lock()
	names := slices.Sorted(maps.Keys(r.held))
	r.mu.Unlock()
	var faults []error
	for _, name := range names {
		faults = append(faults, r.whyHeld(name))
	}
	return errors.Join(faults...)
}

// refuseHeld returns a handler that answers questions about projections that are held with
// 503, and passes the others to next. An event that no other projection has may be one of
// theirs.
func (r *roster) refuseHeld(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		parts := strings.Split(req.URL.Path, "/") // "", v1, projections, NAME, ...
		what, name := "", ""
		if len(parts) > 2 {
			what = parts[2]
		}
		if len(parts) > 3 {
			name = parts[3]
		}
		if what == "projections" || what == "blocked" {
			if err := r.whyHeld(name); err != nil {
				query.Unready(err.Error()).ServeHTTP(w, req)
				return
			}
		}
		held := r.anyHeld()
		if what != "events" || held == nil {
			next.ServeHTTP(w, req)
			return
		}
		p := &probe{ResponseWriter: w, header: http.Header{}}
		next.ServeHTTP(p, req)
		switch {
		case p.held && p.status == http.StatusNotFound:
			query.Unready(held.Error()).ServeHTTP(w, req)
		case p.held:
			p.release(w)
		}
	})
}
