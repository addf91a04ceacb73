package server

import (
	"context"
	"net"
	"net/http"
	"strings"

	"millrace/pipeline/access"
)

// guard lets only those requests pass whose caller has the role that the route needs. Its
// fields are immutable.
type guard struct {
	table *access.Table
	list  func() *access.List // nil: there is no list of callers
	open  bool                // without a list, callers from other machines are admin, too
}

// callerKey is the key of the caller in the context of a request.
type callerKey struct{}

// CallerOf returns the caller of the request with a context.
func CallerOf(ctx context.Context) access.Caller {
	c, _ := ctx.Value(callerKey{}).(access.Caller)
	return c
}

// realm is the protection space in WWW-Authenticate.
const realm = `Bearer realm="millrace"`

func (g *guard) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		needs, routed := g.table.Needs(r)
		if routed && needs == access.Public {
			next.ServeHTTP(w, r)
			return
		}
		c, known, fault := g.caller(r)
		switch {
		case fault != "":
			w.Header().Set("WWW-Authenticate", realm+`, error="invalid_token"`)
			WriteProblem(w, http.StatusUnauthorized, "%s", fault)
		case !known && g.list == nil:
			WriteProblem(w, http.StatusForbidden, "this program knows no callers, so it answers this machine only: give it --auth-file")
		case !known:
			w.Header().Set("WWW-Authenticate", realm)
			WriteProblem(w, http.StatusUnauthorized, "the request names no caller: send a token in the header Authorization, as Bearer TOKEN, or use a client certificate")
		case routed && !c.Has(needs):
			WriteProblem(w, http.StatusForbidden, "%s lacks the role %s, which %s %s needs", c.Name, needs, r.Method, r.URL.Path)
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
		}
	})
}

// caller returns who sends a request. A token decides, if there is one, else the client
// certificate. fault is not empty if the caller named itself in a way that is not valid.
func (g *guard) caller(r *http.Request) (c access.Caller, known bool, fault string) {
	if g.list == nil {
		if g.open || isLoopback(r.RemoteAddr) {
			return access.Caller{Name: "everyone", Roles: []access.Role{access.Admin}}, true, ""
		}
		return access.Caller{}, false, ""
	}
	if values := r.Header.Values("Authorization"); len(values) > 0 {
		scheme, token, _ := strings.Cut(values[0], " ")
		if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") {
			return c, false, "the header Authorization must be one, of the form Bearer TOKEN"
		}
		if c, known = g.list().ByToken(strings.TrimSpace(token)); !known {
			return c, false, "the token is not valid"
		}
		return c, true, ""
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		if c, known = g.list().ByCertificate(r.TLS.PeerCertificates[0]); !known {
			return c, false, "the client certificate is not of a caller on the list"
		}
		return c, true, ""
	}
	return c, false, ""
}

// isLoopback reports whether an address, as host:port, is on the loopback interface.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
