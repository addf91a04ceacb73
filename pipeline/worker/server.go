package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline/cli"
)

const (
	checkTimeout    = 2 * time.Second // of one health check
	shutdownTimeout = 5 * time.Second
)

// Server is the HTTP server of a program: its health, metrics and whatever else
// is mounted.
//
//	/livez      200 as long as the process can answer; says nothing of Kafka
//	/readyz     200 if all checks pass, else 503 with the reasons; ?verbose gives JSON
//	/startupz   the same for the start-up checks, each of which has to pass once
//	/metrics    Prometheus
//	/version    the build, as JSON
//
// Nothing here asks who is calling: it listens on the loopback address unless
// told otherwise.
type Server struct {
	cfg      ServerConfig
	listener net.Listener
	mux      *http.ServeMux

	mu      sync.Mutex
	ready   []check
	startup []check // each is removed once it has passed
}

// ServerConfig configures a [Server]; [ServerFlags.Config] makes one.
type ServerConfig struct {
	Listen     string              // host:port
	ListenFile string              // gets the address listened on; none if empty
	Pprof      bool                // serve /debug/pprof/
	Gatherer   prometheus.Gatherer // what /metrics serves; nothing if nil
	Build      cli.Build
	Logger     *slog.Logger
}

// A check is a named condition of readiness.
type check struct {
	name string
	do   func(context.Context) error
}

// Config returns the configuration that the flags ask for.
func (f *ServerFlags) Config(log *slog.Logger, gatherer prometheus.Gatherer) ServerConfig {
	return ServerConfig{
		Listen: f.Listen, ListenFile: f.ListenFile, Pprof: f.pprof,
		Gatherer: gatherer, Build: f.Env.Build, Logger: log,
	}
}

// NewRegistry returns a registry of metrics that has those of the Go runtime,
// the process and the build.
func NewRegistry(b cli.Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "millrace_build_info",
		Help:        "Which build this is, in its labels; the value is 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
	})
	info.Set(1)
	reg.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// NewServer listens, so that a port in use is known before anything else is
// started. Run, or else Close, must follow.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("%s is in use, perhaps by another worker; choose another address with --listen, or a free port with --listen 127.0.0.1:0", cfg.Listen)
		}
		return nil, fmt.Errorf("--listen: %w", err)
	}
	s := &Server{cfg: cfg, listener: l, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { WriteText(w, http.StatusOK, "ok") })
	s.mux.HandleFunc("GET /readyz", s.serveReady)
	s.mux.HandleFunc("GET /startupz", s.serveStartup)
	s.mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { WriteJSON(w, http.StatusOK, cfg.Build) })
	if cfg.Gatherer != nil {
		s.mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{
			EnableOpenMetrics:   true,
			MaxRequestsInFlight: 4,
			Timeout:             10 * time.Second,
		}))
	}
	if cfg.Pprof {
		s.mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		s.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		s.mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		s.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		s.mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	if cfg.ListenFile != "" {
		if err := WriteFile(cfg.ListenFile, s.Addr()+"\n"); err != nil {
			return nil, errors.Join(fmt.Errorf("--listen-file: %w", err), l.Close())
		}
	}
	return s, nil
}

// WriteFile writes a file as a whole: whoever waits for it never reads a part.
func WriteFile(path, text string) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// Addr returns the address listened on, as host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Handle mounts a handler at a pattern of [http.ServeMux]. The contexts of its
// requests end when the server shuts down.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Ready adds a condition of readiness. Its error is the reason why not, shown to
// whoever asks; it gets two seconds, and may be asked concurrently.
func (s *Server) Ready(name string, f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = append(s.ready, check{name, f})
}

// Startup adds a condition that has to be met once for the program to have
// started. It is a condition of readiness until then.
func (s *Server) Startup(name string, f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.startup = append(s.startup, check{name, f})
}

// Run serves until the context ends, then lets the requests at hand finish, for
// five seconds at most, and returns nil.
func (s *Server) Run(ctx context.Context) error {
	srv := &http.Server{
		Handler:           secure(s.mux),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	log := s.cfg.Logger
	log.Info("listening", "address", "http://"+s.Addr())
	if host, _, err := net.SplitHostPort(s.Addr()); err == nil && !net.ParseIP(host).IsLoopback() {
		log.Warn("the HTTP server can be reached from other machines, and asks nobody who they are", "address", s.Addr())
	}

	var g errgroup.Group
	serving := make(chan struct{})
	g.Go(func() error {
		defer close(serving)
		if err := srv.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("HTTP server: %w", err)
		}
		return nil
	})
	select {
	case <-ctx.Done():
	case <-serving: // it failed
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		log.Warn("some HTTP requests did not end in time and were cut off", "err", err)
		_ = srv.Close() // the listener is closed already
	}
	return errors.Join(g.Wait(), s.removeListenFile())
}

// Close ends a Server that was never Run.
func (s *Server) Close() error { return errors.Join(s.listener.Close(), s.removeListenFile()) }

func (s *Server) removeListenFile() error {
	if s.cfg.ListenFile == "" {
		return nil
	}
	if err := os.Remove(s.cfg.ListenFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// secure sets the headers that keep a browser from making more of an answer
// than it is. Handlers that serve pages may replace them.
func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
		head.Set("Referrer-Policy", "no-referrer")
		h.ServeHTTP(w, r)
	})
}

// A CheckResult is the answer of one health check.
type checkResult struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"` // why not
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

// runStartup asks the start-up checks that have not passed yet.
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

func runChecks(ctx context.Context, checks []check) []checkResult {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	results := make([]checkResult, len(checks))
	var g errgroup.Group
	for i, c := range checks {
		g.Go(func() error {
			results[i] = checkResult{Name: c.name, OK: true}
			if err := c.do(ctx); err != nil {
				results[i].OK, results[i].Reason = false, err.Error()
			}
			return nil
		})
	}
	_ = g.Wait() // every function returns nil
	return results
}

func writeChecks(w http.ResponseWriter, r *http.Request, what string, results []checkResult) {
	status := http.StatusOK
	var text strings.Builder
	for _, c := range results {
		if !c.OK {
			status = http.StatusServiceUnavailable
			fmt.Fprintf(&text, "%s: %s\n", c.Name, c.Reason)
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Query().Has("verbose") {
		WriteJSON(w, status, map[string]any{what: status == http.StatusOK, "checks": results})
		return
	}
	if status == http.StatusOK {
		text.WriteString("ok")
	}
	WriteText(w, status, text.String())
}

func WriteText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strings.TrimRight(text, "\n")+"\n") // whoever asked has gone
}

func WriteJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		WriteText(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // whoever asked has gone
}
