// Package sandbox is Kafka and a schema registry for a laptop and for tests, in
// this process: an embedded broker that speaks Kafka's protocol, transactions
// and groups included, and a registry that refuses incompatible schemas as the
// real ones do. It is for one machine and keeps no copies; production is Apache
// Kafka or what is compatible with it.
//
// Start at [New].
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
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Config says what a sandbox is to be. The zero value is one in memory, on free
// ports.
type Config struct {
	// Addresses to listen on, as host:port. The host must be of this machine
	// alone, for there are no passwords; port 0 takes a free one.
	KafkaAddr    string // "": 127.0.0.1:0
	RegistryAddr string // "": 127.0.0.1:0

	// NoBroker leaves the broker out: a registry beside an outside cluster.
	NoBroker bool

	// DataDir keeps everything across restarts: topics, records, committed
	// offsets, schemas. "": in memory. One sandbox at a time has a directory.
	DataDir string

	Logger *slog.Logger // nil: nothing is logged
}

const anyAddr = "127.0.0.1:0"

// A Sandbox is a broker and a registry that run.
type Sandbox struct {
	broker   *kfake.Cluster // nil without one
	logger   *brokerLogger
	server   *http.Server
	address  string // of the registry
	serving  sync.WaitGroup
	lock     io.Closer          // nil in memory
	stop     context.CancelFunc // of what looks after the groups; nil without a broker
	closing  sync.Once
	closeErr error
}

// New starts a sandbox. Close stops it.
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
		if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
			return nil, err
		}
		if s.lock, err = lockDir(cfg.DataDir); err != nil {
			return nil, err
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
			cfg.Logger.Error("the registry's server ended", "err", err)
		}
	})
	if cfg.NoBroker {
		return s, nil
	}
	if s.broker, err = startBroker(cfg, s.logger); err != nil {
		return s, err
	}
	groups, err := watchMembers(s.broker, time.Second)
	if err != nil {
		return s, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.serving.Go(func() { groups.run(ctx) })
	return s, nil
}

// listen listens on an address of this machine.
func listen(what, addr string) (net.Listener, error) {
	if addr == "" {
		addr = anyAddr
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address of the %s: %w", what, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("address of the %s: %s can be reached from outside, and there are no passwords; take 127.0.0.1", what, addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("address of the %s: %w; port 0 takes a free one", what, err)
	}
	return l, nil
}

func startBroker(cfg Config, logger *brokerLogger) (*kfake.Cluster, error) {
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.DefaultNumPartitions(1),
		kfake.ClusterID("sandbox-" + rand.Text()), // a new cluster each time, but for a directory that has one
		kfake.WithLogger(logger),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return listen("broker", cfg.KafkaAddr) }),
		// A group has its members' answers a second after a change at the
		// latest, also with the server-side protocol. The classic one has no
		// initial delay here.
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

// Brokers returns the addresses of the broker, none if there is none.
func (s *Sandbox) Brokers() []string {
	if s.broker == nil {
		return nil
	}
	return s.broker.ListenAddrs()
}

// RegistryURL returns the URL of the schema registry.
func (s *Sandbox) RegistryURL() string { return "http://" + s.address }

// Close stops both and, with a data directory, keeps what there is. An error
// says that something may not have been kept.
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

// brokerLogger passes on what the broker logs. A broker that cannot keep its
// state when it is closed only logs that, so it is remembered here.
type brokerLogger struct {
	log *slog.Logger

	mu      sync.Mutex
	closing bool
	errs    []error
}

func (l *brokerLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	at := slog.LevelDebug - 4
	switch level {
	case kfake.LogLevelError:
		at = slog.LevelError
	case kfake.LogLevelWarn:
		at = slog.LevelWarn
	case kfake.LogLevelInfo:
		at = slog.LevelDebug // of each request
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
