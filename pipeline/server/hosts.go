package server

import (
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
)

// hosts are the names under which browsers may call a server. A page on another site can
// make its own name resolve to this machine's address (DNS rebinding); its requests then
// have that name as their host. With a list of callers, any name is fine unless names are
// given: the page has no token.
type hosts struct {
	any   bool
	names []string // in lower case
	own   string   // name of the machine
}

func newHosts(names []string, all bool) hosts {
	h := hosts{any: all}
	for _, n := range names {
		h.names = append(h.names, strings.ToLower(n))
	}
	if own, err := os.Hostname(); err == nil {
		h.own = strings.ToLower(own)
	}
	return h
}

// allow reports whether a host, as in a request, is one of the names, or cannot be the
// name of another site: an address, localhost, or the name of this machine.
func (h hosts) allow(host string) bool {
	name := host
	if only, _, err := net.SplitHostPort(host); err == nil {
		name = only
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || net.ParseIP(name) != nil || name != "" && name == h.own || slices.Contains(h.names, name)
}

// check refuses requests for other hosts, and requests of pages on other sites that would
// change something.
func (h hosts) check(next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.any && !h.allow(r.Host) {
			WriteProblem(w, http.StatusMisdirectedRequest, "this program does not answer for the host %.100q: name it in --allow-host", r.Host)
			return
		}
		if err := origins.Check(r); err != nil {
			WriteProblem(w, http.StatusForbidden, "a page of another site must not send %s: %v", r.Method, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}
