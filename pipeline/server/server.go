// Package server is the HTTP server of Millrace's programs. It serves health and metrics,
// and the routes that a program mounts, and it protects them:
//
//   - guard.go: only callers with the role of a route (see package access);
//   - hosts.go: no page of another site;
//   - conns.go: a limit for connections, at which the one that waits the longest ends;
//   - pace.go: deadlines for headers, bodies and each write, and limits of sizes;
//   - tls.go: TLS, with certificates that are replaced while it runs;
//   - health.go: probes;
//   - problem.go: errors as RFC 9457 has them.
//
// The goroutine of the command owns a [Server] until Run. The locks are Server.mu,
// phase.mu and conns.mu; only conns.mu is taken under another one, phase.mu. No check and
// no handler runs under a lock.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline/access"
	"millrace/pipeline/cli"
	"millrace/pipeline/reload"
)

const (
	checkTimeout    = 2 * time.Second // of one health check
	shutdownTimeout = 5 * time.Second
	probeConns      = 64  // most connections for probes
	maxStreams      = 100 // most concurrent requests of an HTTP/2 connection
)

// Config configures a [Server].
type Config struct {
	Program string // of package access
	Listen  string // host:port
	Probes  string // host:port for health and metrics; "" means that Listen has them, too

	ListenFile string // file that receives the server's address; "" means none

	TLS      TLSFiles
	Access   string   // file with the callers, see access.Parse; "" means that there are none
	Insecure bool     // without callers, other machines are admin
	Hosts    []string // --allow-host: names under which the server is called
	Own      []string // more of them, which the program knows
	Conns    int      // most connections
	MaxBody  func(*http.Request) int64

	Pprof   bool                 // serve /debug/pprof/
	Metrics *prometheus.Registry // source of /metrics, and receives those of the server; nil: none
	Build   cli.Build
	Logger  *slog.Logger // nil disables logging
}

// Server is the HTTP server of a program.
type Server struct {
	cfg     Config
	table   *access.Table
	main    *listener
	probes  *listener // nil: main has them
	dropped prometheus.Counter

	certificates *reload.Files[*tls.Config]  // nil: no TLS
	callers      *reload.Files[*access.List] // nil: no list

	mu      sync.Mutex
	ready   []check // guarded by mu
	startup []check // guarded by mu; a check is removed when it has passed
}

// listener is an address at which a Server serves.
type listener struct {
	net.Listener
	mux   *http.ServeMux
	conns *conns
}

// New listens, so a port in use is an error before the program starts anything else. The
// caller must call Run or Close.
func New(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, table: access.NewTable(cfg.Program), dropped: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_http_connections_dropped_total",
		Help: "Connections that were closed because there were too many: those that had waited the longest for their client.",
	})}
	if err := errors.Join(s.readFiles(), cfg.CheckOpen()); err != nil {
		return nil, err
	}
	if err := s.listen(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(s.dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_http_connections",
			Help: "Open connections of the HTTP server.",
		}, func() float64 { return float64(s.main.conns.count()) }))
	}
	s.mountOwn()
	return s, nil
}

// readFiles reads the certificates and the callers for the first time.
func (s *Server) readFiles() (err error) {
	if s.cfg.TLS.Enabled() {
		if s.certificates, err = s.cfg.TLS.open(s.cfg.Logger); err != nil {
			return fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
	}
	if s.cfg.Access != "" {
		parse := func(contents [][]byte) (*access.List, error) { return access.Parse(contents[0]) }
		if s.callers, err = reload.Open(s.cfg.Logger, parse, s.cfg.Access); err != nil {
			return fmt.Errorf("--auth-file: %w", err)
		}
	}
	return nil
}

// CheckOpen refuses to let other machines in without a list of callers. [New] calls it; a
// program that first connects to something can call it before.
func (c Config) CheckOpen() error {
	if c.Listen == "" {
		return cli.Usagef("--listen: give an address, such as 127.0.0.1:0 for a free port of this machine")
	}
	if c.Access != "" || c.Insecure {
		return nil
	}
	addr, err := net.ResolveTCPAddr("tcp", c.Listen)
	if err != nil {
		return cli.Usagef("--listen: %w", err)
	}
	if addr.IP.IsLoopback() {
		return nil
	}
	return cli.Usagef("--listen %s: other machines could read and change everything; give --auth-file with the callers, or --insecure-http if the network protects this address", c.Listen)
}

func (s *Server) listen() error {
	l, err := listen("--listen", s.cfg.Listen)
	if err != nil {
		return err
	}
	s.main = &listener{Listener: l, mux: http.NewServeMux(), conns: newConns(s.cfg.Conns, s.dropped.Inc)}
	if s.cfg.Probes != "" {
		if l, err = listen("--probe-listen", s.cfg.Probes); err != nil {
			return err
		}
		s.probes = &listener{Listener: l, mux: http.NewServeMux(), conns: newConns(probeConns, s.dropped.Inc)}
	}
	if s.cfg.ListenFile == "" {
		return nil
	}
	if err := WriteFile(s.cfg.ListenFile, s.Addr()+"\n"); err != nil {
		return fmt.Errorf("--listen-file: %w", err)
	}
	return nil
}

// listen listens at an address, which a flag has set.
func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s is in use, perhaps by another worker; choose another address with %s, or a free port with %s 127.0.0.1:0 (%w)", address, flag, flag, syscall.EADDRINUSE)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return smallBuffers{l}, nil
}

// sendBuffer is the kernel's memory for the unread bytes of a connection. The kernel would
// let it grow to megabytes, which a client that does not read costs, as does the work for the
// answer.
const sendBuffer = 128 << 10

// smallBuffers is a listener whose connections have a sendBuffer.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(sendBuffer) // fails if the client is gone
	}
	return conn, err
}

// mountOwn mounts the routes that every program has.
func (s *Server) mountOwn() {
	own := s.main.mux
	if s.probes != nil {
		own = s.probes.mux
	}
	own.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { WriteText(w, http.StatusOK, "ok") })
	own.HandleFunc("GET /readyz", s.serveReady)
	own.HandleFunc("GET /startupz", s.serveStartup)
	if s.cfg.Metrics != nil {
		own.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{
			EnableOpenMetrics:   true,
			MaxRequestsInFlight: 4,
			Timeout:             10 * time.Second,
		}))
	}
	s.Handle("GET /version", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { WriteJSON(w, http.StatusOK, s.cfg.Build) }))
	if s.cfg.Pprof {
		s.Handle("GET /debug/pprof/", http.HandlerFunc(serveProfile))
	}
	s.main.mux.HandleFunc("/", s.serveUnknown)
	if s.probes != nil {
		s.probes.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			WriteProblem(w, http.StatusNotFound, "%s %s does not exist at this address, which is for probes", r.Method, r.URL.Path)
		})
	}
}

// serveProfile serves the profiles of Go.
func serveProfile(w http.ResponseWriter, r *http.Request) {
	switch strings.TrimPrefix(r.URL.Path, "/debug/pprof/") {
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Index(w, r)
	}
}

// serveUnknown answers requests that no route serves.
func (s *Server) serveUnknown(w http.ResponseWriter, r *http.Request) {
	if allow := s.table.Methods(r); len(allow) > 0 && !slices.Contains(allow, r.Method) {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		WriteProblem(w, http.StatusMethodNotAllowed, "%s does not accept %s: use %s", r.URL.Path, r.Method, strings.Join(allow, " or "))
		return
	}
	WriteProblem(w, http.StatusNotFound, "%s %s does not exist", r.Method, r.URL.Path)
}

// Addr returns the address that the server listens on, as host:port.
func (s *Server) Addr() string { return s.main.Addr().String() }

// ProbeAddr returns the address for health and metrics, as host:port.
func (s *Server) ProbeAddr() string {
	if s.probes != nil {
		return s.probes.Addr().String()
	}
	return s.Addr()
}

// Handle mounts a handler at a pattern of [access.Routes], which has its role, or at the
// path below which several of these patterns are. It panics at any other pattern. The
// contexts of the requests end when the server shuts down.
func (s *Server) Handle(pattern string, h http.Handler) {
	if !s.table.Has(pattern) {
		panic("no role is known for " + pattern)
	}
	s.main.mux.Handle(pattern, h)
}

// Run serves until the context ends. Then it waits up to 5 s for requests in flight, and
// returns nil.
func (s *Server) Run(ctx context.Context) error {
	scheme := "http://"
	if s.certificates != nil {
		scheme = "https://"
	}
	s.cfg.Logger.Info("listening", "address", scheme+s.Addr())
	if s.callers == nil && s.cfg.Insecure {
		s.cfg.Logger.Warn("everyone who reaches the HTTP server is admin, because of --insecure-http and no --auth-file", "address", s.Addr())
	}
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serve(running, s.main, s.protected()) })
	if s.probes != nil {
		g.Go(func() error {
			return s.serve(running, s.probes, s.probes.conns.follow(pace(noBody, secure(s.probes.mux))))
		})
	}
	if s.certificates != nil {
		g.Go(func() error { return s.certificates.Run(running) })
	}
	if s.callers != nil {
		g.Go(func() error { return s.callers.Run(running) })
	}
	return errors.Join(g.Wait(), s.removeListenFile())
}

func noBody(*http.Request) int64 { return 0 }

// protected returns the handler of the main address.
func (s *Server) protected() http.Handler {
	g := &guard{table: s.table, open: s.cfg.Insecure}
	if s.callers != nil {
		g.list = s.callers.Get
	}
	limit := s.cfg.MaxBody
	if limit == nil {
		limit = noBody
	}
	return s.main.conns.follow(pace(limit, secure(newHosts(append(slices.Clone(s.cfg.Hosts), s.cfg.Own...), s.callers != nil && len(s.cfg.Hosts) == 0).check(g.protect(s.main.mux)))))
}

// serve serves at one address until the context ends.
func (s *Server) serve(ctx context.Context, at *listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       at.conns.context,
		ConnState:         at.conns.state,
	}
	var g errgroup.Group
	ended := make(chan struct{})
	g.Go(func() (err error) {
		defer close(ended)
		if s.certificates != nil {
			srv.TLSConfig = serving(s.certificates)
			err = srv.ServeTLS(at, "", "")
		} else {
			err = srv.Serve(at)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("HTTP server: %w", err)
		}
		return nil
	})
	select {
	case <-ctx.Done():
	case <-ended: // Serve failed
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		s.cfg.Logger.Warn("cut off HTTP requests that did not finish in time", "err", err)
		_ = srv.Close() // the listener is closed already
	}
	return g.Wait()
}

// Close ends a Server that was never Run.
func (s *Server) Close() error {
	var errs []error
	for _, l := range []*listener{s.main, s.probes} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(append(errs, s.removeListenFile())...)
}

func (s *Server) removeListenFile() error {
	if s.cfg.ListenFile == "" || s.main == nil {
		return nil
	}
	if err := os.Remove(s.cfg.ListenFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// secure sets headers that keep browsers from interpreting an answer as something else, such
// as a page with scripts. Handlers that serve pages can replace them.
func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		head.Set("Referrer-Policy", "no-referrer")
		h.ServeHTTP(w, r)
	})
}
