// Package sandbox runs a Kafka broker and a schema registry in this process, for
// development and tests. The broker supports transactions and consumer groups. The
// registry rejects incompatible schemas as production registries do. There is no
// replication: use Apache Kafka or a compatible system in production.
//
// Start reading at [New]. A Sandbox owns all of its goroutines; [Sandbox.Close] stops
// them and waits for them. Its methods are safe for concurrent use.
package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"millrace/pipeline/private"
)

// Config configures a sandbox. The zero value keeps all data in memory and listens on
// free ports.
type Config struct {
	// Addresses to listen on, as host:port. Port 0 selects a free port. The host must
	// be a loopback address, because the sandbox has no authentication.
	KafkaAddr    string // "" means 127.0.0.1:0
	RegistryAddr string // "" means 127.0.0.1:0

	// NoBroker starts only the registry, for use with an external cluster.
	NoBroker bool

	// DataDir is the directory that keeps topics, records, committed offsets and
	// schemas across restarts. Only one sandbox at a time can use it. "" keeps all data
	// in memory.
	DataDir string

	Logger *slog.Logger // nil disables logging
}

const anyAddr = "127.0.0.1:0"

// A Sandbox is a running broker and registry.
type Sandbox struct {
	broker   *kfake.Cluster // nil with Config.NoBroker
	logger   *brokerLogger
	server   *http.Server
	address  string             // of the registry
	serving  sync.WaitGroup     // the HTTP server and the member watcher
	lock     io.Closer          // lock of the data directory; nil in memory
	stop     context.CancelFunc // stops the member watcher; nil without a broker
	closing  sync.Once
	closeErr error // set by closing
}

// New starts a sandbox. The caller must close it.
func New(cfg Config) (_ *Sandbox, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Sandbox{logger: &brokerLogger{log: cfg.Logger}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	registryFile := ""
	if cfg.DataDir != "" {
		if err := private.Dir(cfg.DataDir); err != nil {
			return nil, err
		}
		if s.lock, err = lockDir(cfg.DataDir); err != nil {
			return nil, err
		}
		if err := private.Narrow(cfg.DataDir); err != nil {
			cfg.Logger.Warn("the data directory is not private", "dir", cfg.DataDir, "err", err)
		}
		registryFile = filepath.Join(cfg.DataDir, "registry.json")
	}
	registry, err := openRegistry(registryFile)
	if err != nil {
		return nil, err
	}
	listener, err := listen("registry", cfg.RegistryAddr)
	if err != nil {
		return nil, err
	}
	s.address = listener.Addr().String()
	s.server = &http.Server{
		Handler:           registryAPI{registry, cfg.Logger}.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn),
	}
	s.serving.Go(func() {
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.Error("registry server failed", "err", err)
		}
	})
	if cfg.NoBroker {
		return s, nil
	}
	if s.broker, err = startBroker(cfg, s.logger); err != nil {
		return s, err
	}
	applyRules(s.broker)
	watcher, err := watchMembers(s.broker, time.Second)
	if err != nil {
		return s, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.serving.Go(func() { watcher.run(ctx) })
	return s, nil
}

// listen listens on a loopback address. what names the server in errors.
func listen(what, addr string) (net.Listener, error) {
	if addr == "" {
		addr = anyAddr
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address of the %s: %w", what, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("address of the %s: %s is reachable from other machines, and the sandbox has no authentication; use 127.0.0.1", what, addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("address of the %s: %w; port 0 selects a free port", what, err)
	}
	return l, nil
}

func startBroker(cfg Config, logger *brokerLogger) (*kfake.Cluster, error) {
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.DefaultNumPartitions(1),
		kfake.ClusterID("sandbox-" + rand.Text()), // ignored if the data directory already has an id
		kfake.WithLogger(logger),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return listen("broker", cfg.KafkaAddr) }),
		// In the server-side group protocol (KIP-848), members respond to a rebalance in
		// their heartbeats. At this interval the group has all responses within a second.
		// The classic protocol has no initial delay in kfake.
		kfake.BrokerConfigs(map[string]string{"group.consumer.heartbeat.interval.ms": "500"}),
	}
	if cfg.DataDir != "" {
		opts = append(opts, kfake.DataDir(filepath.Join(cfg.DataDir, "kafka")), kfake.SyncWrites())
	}
	broker, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, fmt.Errorf("starting the broker: %w", err)
	}
	return broker, nil
}

// Brokers returns the addresses of the broker, or nil with Config.NoBroker.
func (s *Sandbox) Brokers() []string {
	if s.broker == nil {
		return nil
	}
	return s.broker.ListenAddrs()
}

// RegistryURL returns the URL of the schema registry.
func (s *Sandbox) RegistryURL() string { return "http://" + s.address }

// Close stops the broker and the registry, and saves their data if there is a data
// directory. After an error, some data may not have been saved.
func (s *Sandbox) Close() error {
	s.closing.Do(func() {
		var faults []error
		if s.stop != nil {
			s.stop()
		}
		if s.server != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			if err := s.server.Shutdown(ctx); err != nil {
				faults = append(faults, s.server.Close())
			}
			s.serving.Wait()
		}
		if s.broker != nil {
			s.logger.startClosing()
			s.broker.Close()
			faults = append(faults, s.logger.faults())
		}
		if s.lock != nil {
			faults = append(faults, s.lock.Close())
		}
		s.closeErr = errors.Join(faults...)
	})
	return s.closeErr
}

// brokerLogger forwards the broker's log messages. A broker that fails to save its
// state while it closes only logs the error, so brokerLogger also collects the errors
// that are logged after startClosing.
type brokerLogger struct {
	log *slog.Logger

	mu      sync.Mutex
	closing bool    // guarded by mu
	errs    []error // guarded by mu
}

func (l *brokerLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	at := slog.LevelDebug - 4
	switch level {
	case kfake.LogLevelError:
		at = slog.LevelError
	case kfake.LogLevelWarn:
		at = slog.LevelWarn
	case kfake.LogLevelInfo:
		at = slog.LevelDebug // kfake logs every request at this level
	}
	if level == kfake.LogLevelError {
		l.mu.Lock()
		if l.closing {
			l.errs = append(l.errs, fmt.Errorf("broker: "+format, args...))
		}
		l.mu.Unlock()
	}
	if l.log.Enabled(context.Background(), at) {
		l.log.Log(context.Background(), at, "broker: "+fmt.Sprintf(format, args...))
	}
}

func (l *brokerLogger) startClosing() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = true
}

func (l *brokerLogger) faults() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}
