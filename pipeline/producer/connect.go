package producer

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/access"
	"millrace/pipeline/cli"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/server"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// connection is everything between an event and its topic.
type connection struct {
	topic   *topology.Topic
	encoder *event.Encoder
	writer  keyring.RecordWriter
	keys    *keyring.Ring // nil if nothing is encrypted
	close   func()        // closes the writer and stops following the keys
	kafka   kafka.Config
	known   map[string]kafka.TopicInfo // the topics as they were found; nil in a dry run
	forget  func(topic string)         // makes the writer accept a topic that was created again
	log     *slog.Logger
	metrics *prometheus.Registry
}

// open reads the configuration and connects. In a dry run it connects to nothing.
func (p *producer) open(ctx context.Context) (*connection, error) {
	if p.patience <= 0 {
		return nil, cli.Usagef("--timeout: %v is not a positive duration", p.patience)
	}
	c := &connection{metrics: worker.NewRegistry(p.env.Build), close: func() {}}
	var err error
	if c.log, err = p.log.Logger(); err != nil {
		return nil, err
	}
	var all *topology.Topology
	if all, c.topic, err = p.target(); err != nil {
		return nil, err
	}
	c.encoder, err = event.NewEncoder(event.EncoderConfig{
		Topic: c.topic, Key: p.keyOf(c.topic), Encryption: all.Encryption, NewID: uuid.NewString, Now: p.env.Now,
	})
	if err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	if p.dryRun {
		c.writer = dryWriter{}
		return c, nil
	}
	if err := p.connect(ctx, c, keyring.Topic(all)); err != nil {
		return nil, err
	}
	return c, nil
}

// connect creates missing topics and schemas, and sets the writer and the keys. keys
// is the topology's key topic, nil if it has none.
func (p *producer) connect(ctx context.Context, c *connection, keys *topology.Topic) error {
	if !c.encoder.Encrypts() {
		keys = nil
	}
	ringConfig := keyring.Config{Now: p.env.Now, Log: c.log, Metrics: c.metrics}
	var err error
	if ringConfig.KEKs, err = p.kek.Parse(); err != nil {
		return err
	}
	if keys != nil && ringConfig.KEKs == nil {
		return cli.Usagef("%s encrypts fields of the events of %s: name the key-encryption keys with --kek-file, or set %s", p.topology.File, c.topic.Name, keyring.EnvKEK)
	}
	if keys != nil {
		if err := p.kek.Unlock(ctx, ringConfig.KEKs, c.log, func(string) {}); err != nil {
			return err
		}
	}
	cfg, err := p.kafka.Config(c.log, c.metrics)
	if err != nil {
		return err
	}
	cfg.Partitioners = map[string]pipeline.Partitioner{c.topic.Name: c.topic.Partitioner}
	cfg.Patience = kafka.CommandPatience
	where, err := p.registry.Config()
	if err != nil {
		return err
	}
	registry, err := cli.OpenRegistry(where)
	if err != nil {
		return &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	if err := c.encoder.Register(ctx, registry, !p.noRegister); err != nil {
		return err
	}
	topics := []*topology.Topic{c.topic}
	if keys != nil {
		topics = append(topics, keys)
	}
	cluster, err := kafka.EnsureTopics(ctx, cfg, worker.TopicSpecs(topics...), !p.noCreate)
	if err != nil {
		return err
	}
	out, err := kafka.NewWriter(cfg)
	if err != nil {
		return err
	}
	c.writer, c.close, c.forget = out, out.Close, out.Forget
	c.kafka, c.known = cfg, cluster.Topics
	c.encoder.SetLimits(out.Limits(ctx, c.topic.Name))
	if keys == nil {
		return nil
	}
	ringConfig.Kafka, ringConfig.Topic, ringConfig.Partitions, ringConfig.Writer = cfg, keys.Name, cluster.Topics[keys.Name].Partitions, out
	return p.followKeys(ctx, c, ringConfig)
}

// watch compares the topics with what they were. It returns nil when the context ends, and
// an error when a topic has changed: see [kafka.Watch].
func (c *connection) watch(ctx context.Context) error {
	if c.known == nil {
		return nil
	}
	return kafka.Watch(ctx, c.kafka, c.known)
}

// followKeys starts to follow the key topic, and returns when it was read to its
// end.
func (p *producer) followKeys(ctx context.Context, c *connection, cfg keyring.Config) error {
	ring := keyring.New(cfg)
	c.encoder.UseKeys(ring)
	c.keys = ring
	// After an interrupt, the lines that were read are still sent, so the keys are
	// followed until close.
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() {
		if err := ring.Run(following); err != nil {
			c.log.Error("reading the key topic failed", "topic", cfg.Topic, "err", err)
		}
	})
	closeWriter := c.close
	c.close = func() {
		stop()
		running.Wait()
		closeWriter()
	}
	loading, cancel := context.WithTimeoutCause(ctx, p.patience, fmt.Errorf("not finished in %v (--timeout)", p.patience))
	defer cancel()
	if err := ring.Loaded(loading); err != nil {
		c.close()
		return err
	}
	return nil
}

// dryWriter acknowledges every record and drops it.
type dryWriter struct{}

func (dryWriter) Write(_ context.Context, _ *pipeline.Record, done func(error)) { done(nil) }
func (dryWriter) Flush(context.Context) error                                   { return nil }

// serve starts the HTTP server if --listen is given. The function that it returns
// stops the server and waits for its end.
func (p *producer) serve(ctx context.Context, log *slog.Logger, metrics *prometheus.Registry) (func(), error) {
	if p.server.Listen == "" {
		return func() {}, nil
	}
	at, err := server.New(p.server.Config(access.Producer, log, metrics))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() {
		if err := at.Run(ctx); err != nil {
			log.Error("the HTTP server failed; sending continues", "err", err)
		}
	})
	return func() {
		stop()
		running.Wait()
	}, nil
}
