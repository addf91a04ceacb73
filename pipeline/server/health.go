package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/sync/errgroup"
)

// A check is a named condition of readiness.
type check struct {
	name     string
	do       func(context.Context) error
	optional bool // see Report
}

// Ready adds a condition of readiness. An error of f is the reason for not being ready; the
// answer of /readyz shows it. f has two seconds, and several goroutines can call it at the
// same time.
func (s *Server) Ready(name string, f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = append(s.ready, check{name: name, do: f})
}

// Report adds a condition that /readyz shows, but that is no condition of readiness: the
// program has a part that does not work, and is of use without it. See Ready for f.
func (s *Server) Report(name string, f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = append(s.ready, check{name: name, do: f, optional: true})
}

// Startup adds a condition that must be met once for the program to have started. Until
// then it is also a condition of readiness.
func (s *Server) Startup(name string, f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.startup = append(s.startup, check{name: name, do: f})
}

// A checkResult is the result of one health check.
type checkResult struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"` // why not

	// Optional means that the program is ready although the check fails.
	Optional bool `json:"optional,omitempty"`
}

func (s *Server) serveReady(w http.ResponseWriter, r *http.Request) {
	results := s.runStartup(r.Context())
	s.mu.Lock()
	ready := append([]check(nil), s.ready...)
	s.mu.Unlock()
	writeChecks(w, r, "ready", append(results, runChecks(r.Context(), ready)...))
}

func (s *Server) serveStartup(w http.ResponseWriter, r *http.Request) {
	writeChecks(w, r, "started", s.runStartup(r.Context()))
}

// runStartup runs the startup checks that have not passed yet.
func (s *Server) runStartup(ctx context.Context) []checkResult {
	s.mu.Lock()
	waiting := append([]check(nil), s.startup...)
	s.mu.Unlock()
	results := runChecks(ctx, waiting)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range results {
		for i, c := range s.startup {
			if r.OK && c.name == r.Name {
				s.startup = append(s.startup[:i:i], s.startup[i+1:]...)
				break
			}
		}
	}
	return results
}

// runChecks runs checks concurrently, with a common timeout.
func runChecks(ctx context.Context, checks []check) []checkResult {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	results := make([]checkResult, len(checks))
	var g errgroup.Group
	for i, c := range checks {
		g.Go(func() error {
			results[i] = checkResult{Name: c.name, OK: true, Optional: c.optional}
			if err := c.do(ctx); err != nil {
				results[i].OK, results[i].Reason = false, err.Error()
			}
			return nil
		})
	}
	_ = g.Wait() // every function returns nil
	return results
}

// writeChecks answers with status 200 if all checks passed that are not optional, else 503. what is the JSON field
// that holds the same as a bool.
func writeChecks(w http.ResponseWriter, r *http.Request, what string, results []checkResult) {
	status := http.StatusOK
	var text strings.Builder
	for _, c := range results {
		if !c.OK {
			if !c.Optional {
				status = http.StatusServiceUnavailable
			}
			fmt.Fprintf(&text, "%s: %s\n", c.Name, c.Reason)
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Query().Has("verbose") {
		WriteJSON(w, status, map[string]any{what: status == http.StatusOK, "checks": results})
		return
	}
	if status == http.StatusOK {
		WriteText(w, status, "ok\n"+text.String())
		return
	}
	WriteText(w, status, text.String())
}
