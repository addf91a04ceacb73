package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
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

// Server is the HTTP server of a program. It serves health, metrics, and the handlers that
// the program mounts:
//
//	/livez      200 as long as the process can answer; independent of Kafka
//	/readyz     200 if all checks pass, else 503 with the reasons; ?verbose gives JSON
//	/startupz   the same for the startup checks, each of which must pass once
//	/metrics    metrics in Prometheus's format
//	/version    the build, as JSON
//
// There is no authentication: the programs listen on the loopback address by default.
type Server struct {
	cfg      ServerConfig
	listener net.Listener
	mux      *http.ServeMux

	mu      sync.Mutex
	ready   []check // guarded by mu
	startup []check // guarded by mu; a check is removed when it has passed
}

// ServerConfig configures a [Server]; [ServerFlags.Config] makes one.
type ServerConfig struct {
	Listen     string              // host:port
	ListenFile string              // file that receives the server's address; "" means none
	Pprof      bool                // serve /debug/pprof/
	Gatherer   prometheus.Gatherer // source of /metrics; nil means no /metrics
	Build      cli.Build
	Logger     *slog.Logger // nil disables logging
}

// NewRegistry returns a registry with the metrics of the Go runtime, the process and the
// build.
func NewRegistry(b cli.Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "millrace_build_info",
		Help:        "Version, commit and Go version of the build in labels; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
	})
	info.Set(1)
	reg.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// NewServer listens, so a port in use is an error before the program starts anything else.
// The caller must call Run or Close.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("%s is in use, perhaps by another worker; choose another address with --listen, or a free port with --listen 127.0.0.1:0 (%w)", cfg.Listen, syscall.EADDRINUSE)
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

// Addr returns the address that the server listens on, as host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Handle mounts a handler at a pattern of [http.ServeMux]. The contexts of its requests end
// when the server shuts down.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Run serves until the context ends. Then it waits up to 5 s for requests in flight, and
// returns nil.
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
		log.Warn("other machines can reach the HTTP server, which has no authentication", "address", s.Addr())
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
	case <-serving: // Serve failed
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		log.Warn("cut off HTTP requests that did not finish in time", "err", err)
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

// secure sets headers that keep browsers from interpreting an answer as something else, such
// as a page with scripts. Handlers that serve pages can replace them.
func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
		head.Set("Referrer-Policy", "no-referrer")
		h.ServeHTTP(w, r)
	})
}
