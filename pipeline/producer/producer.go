// Package producer puts events on topics: from files, from HTTP, from a generator,
// and from dead-letter topics.
//
// Start at [Command]. send.go is the pipeline from lines to acknowledged records.
package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// Command returns the command of the program that puts events into a topic.
func Command(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "producer",
		Short: "Put events into a topic: validated, Avro-encoded, in order for each key",
		Example: `  producer send events.jsonl.gz
  some-program | producer send -
  producer generate --events 10000 --seed 7
  producer generate --events 100 --out -`,
	}
	cmd.AddCommand(sendCommand(e), generateCommand(e), serveCommand(e), redriveCommand(e))
	return cmd
}

func sendCommand(e *cli.Env) *cobra.Command {
	p := &producer{env: e}
	cmd := &cobra.Command{
		Use:   "send [FILE...|-]",
		Short: "Send events from JSON lines",
		Long: `Sends the events of JSON lines, plain or gzip, from files or stdin (-, or no file).

An event has id, type, timestamp (RFC 3339), version, metadata and data. All but
type and data may be left out: they become a random UUID, the time now, 1, {}.
Its type chooses the schema, of those that the topology gives the topic.

A bad line is reported as FILE:LINE: FIELD: what was expected, and kept in a
rejects file; the good lines are sent. What is reported as sent, Kafka has.

Exit code 0 if every line was sent; 1 if a line was bad, Kafka failed or the
command was interrupted; 2 if the command line or the topology is wrong.`,
		Example: `  producer send events.jsonl.gz
  producer send --dry-run events.jsonl
  some-program | producer send --json -`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, files []string) error {
			if len(files) == 0 {
				files = []string{"-"}
			}
			return p.send(cmd.Context(), files)
		},
	}
	p.addFlags(cmd, "")
	flags := cmd.Flags()
	flags.StringVar(&p.rejectsFile, "rejects", "", "`file` for bad lines (default: the input's name and .rejects; stdin.rejects for stdin)")
	flags.BoolVar(&p.dryRun, "dry-run", false, "check every line, and send nothing")
	return cmd
}

func generateCommand(e *cli.Env) *cobra.Command {
	p := &producer{env: e}
	var story storyFlags
	var out string
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Send the events of a shop that does not exist",
		Long: `Sends the events of a shop that does not exist: users sign up, change their
details, order, pay, get their parcels, and some leave.

A seed always gives the same events, ids included; users and orders of different
seeds are different ones.`,
		Example: `  producer generate --events 10000 --seed 7
  producer generate --events 0 --rate 50 --start now
  producer generate --events 100000 --out events.jsonl`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			told, err := story.story(e.Now())
			if err != nil {
				return err
			}
			lines := tellStory(told, story.rate, e.Now)
			defer lines.close()
			if out != "" {
				return p.write(cmd.Context(), out, lines)
			}
			return p.run(cmd.Context(), nil, func(context.Context) lineSource { return lines })
		},
	}
	p.addFlags(cmd, "")
	flags := cmd.Flags()
	flags.Uint64Var(&story.seed, "seed", 1, "`number` that decides what happens")
	flags.IntVarP(&story.events, "events", "n", 10_000, "how many events; 0 means no end")
	flags.IntVar(&story.users, "users", 0, "how many users sign up, at most (default: one event in ten is a sign-up)")
	flags.Float64Var(&story.rate, "rate", 0, "events per second; 0 means as fast as can be")
	flags.StringVar(&story.start, "start", defaultStart, "`time` before the first event, or now; then one event a second, or --rate")
	flags.StringVar(&out, "out", "", "write the events as JSON lines to a `file` or - instead of sending them")
	return cmd
}

// producer is what send and generate have in common.
type producer struct {
	env      *cli.Env
	kafka    *cli.KafkaFlags
	registry *cli.RegistryFlags
	topology *cli.TopologyFlags
	log      *cli.LogFlags
	server   *worker.ServerFlags
	kek      *keyring.Flags

	topic       string
	key         string
	noRegister  bool
	noCreate    bool
	rejectsFile string
	dryRun      bool
	asJSON      bool
	patience    time.Duration
}

// addFlags adds the flags. listen is the default of --listen.
func (p *producer) addFlags(cmd *cobra.Command, listen string) {
	flags := cmd.Flags()
	p.kafka = p.env.KafkaFlags(flags, "producer")
	p.registry = p.env.RegistryFlags(flags)
	p.topology = p.env.TopologyFlags(flags)
	p.log = p.env.LogFlags(flags)
	p.server = worker.AddServerFlags(p.env, flags, listen)
	p.kek = keyring.AddFlags(p.env, flags)
	flags.StringVar(&p.topic, "topic", "", "`topic` to send to (default: the only one in the topology that has types)")
	flags.StringVar(&p.key, "key", "data.id", "dotted `path` of the field that is the record key: the aggregate's id")
	flags.BoolVar(&p.noRegister, "no-register", false, "take schemas as they are in the registry, and register none")
	flags.BoolVar(&p.noCreate, "no-create-topics", false, "stop if the topic does not exist, instead of creating it as the topology says")
	flags.DurationVar(&p.patience, "timeout", 2*time.Minute, "give up when Kafka acknowledges nothing for so long")
	flags.BoolVar(&p.asJSON, "json", false, "print the summary as JSON on stdout")
	p.env.BindEnv(flags, "topic", "no-create-topics")
}

func (p *producer) send(ctx context.Context, files []string) error {
	for _, name := range files {
		if name == "-" {
			continue
		}
		if info, err := os.Stat(name); err != nil {
			return err
		} else if info.IsDir() {
			return fmt.Errorf("%s is a directory; name the files in it", name)
		}
	}
	return p.run(ctx, files, func(ctx context.Context) lineSource { return readFiles(ctx, files, p.env.Stdin) })
}

// run sends the events of a source. files are those that it reads.
func (p *producer) run(ctx context.Context, files []string, source func(context.Context) lineSource) error {
	way, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer way.close()
	stopServer, err := p.serve(ctx, way.log, way.metrics)
	if err != nil {
		return err
	}
	defer stopServer()

	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	s := &sender{
		encoder:  way.encoder,
		writer:   way.writer,
		rejects:  &rejects{path: p.rejectsPath, keep: files},
		console:  &console{w: p.env.Stderr, terminal: p.env.Terminal},
		metrics:  newProducerMetrics(way.metrics, way.encoder.Types),
		now:      p.env.Now,
		tick:     ticker.C,
		patience: p.patience,
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	out := s.run(reading, source(reading))
	if err := p.report(way.topic.Name, out); err != nil {
		return err
	}
	if out.err != nil || out.interrupted || out.rejected > 0 {
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	return nil
}

func (p *producer) rejectsPath(input string) string {
	if p.rejectsFile != "" {
		return p.rejectsFile
	}
	return input + ".rejects"
}

// way is all that there is between an event and its topic.
type way struct {
	topic   *topology.Topic
	encoder *event.Encoder
	writer  keyring.RecordWriter
	close   func() // of the writer and the keys
	log     *slog.Logger
	metrics *prometheus.Registry
}

// open reads the configuration and connects.
func (p *producer) open(ctx context.Context) (w *way, err error) {
	if p.patience <= 0 {
		return nil, cli.Usagef("--timeout: %v is no time to wait", p.patience)
	}
	w = &way{metrics: worker.NewRegistry(p.env.Build)}
	if w.log, err = p.log.Logger(); err != nil {
		return nil, err
	}
	var all *topology.Topology
	if all, w.topic, err = p.target(); err != nil {
		return nil, err
	}
	if w.encoder, err = event.NewEncoder(w.topic.Name, w.topic.Types, p.key, uuid.NewString, p.env.Now); err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	if w.encoder.Headers, err = event.NewTopicHeaders(w.topic); err != nil {
		return nil, err
	}
	if err := w.encoder.Encrypt(all.Encryption); err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	err = p.connect(ctx, w, keyring.Topic(all))
	return w, err
}

// connect sees to it that topics and schemas are there, and sets what takes the
// records. keys is the topic of the keys, nil if nothing is encrypted.
func (p *producer) connect(ctx context.Context, w *way, keys *topology.Topic) error {
	w.close = func() {}
	if p.dryRun {
		w.writer = dryWriter{}
		return nil
	}
	if !slices.ContainsFunc(w.encoder.Types, func(t *event.Type) bool { return t.Sealed != nil }) {
		keys = nil
	}
	keks, err := p.kek.Load()
	if err != nil {
		return err
	}
	if keys != nil && keks == nil {
		return cli.Usagef("%s encrypts fields of the events of %s: name the key-encryption keys with --kek-file, or set %s", p.topology.File, w.topic.Name, keyring.EnvKEK)
	}
	cfg, err := p.kafka.Config(w.log, w.metrics)
	if err != nil {
		return err
	}
	where, err := p.registry.Config()
	if err != nil {
		return err
	}
	registry, err := cli.OpenRegistry(where)
	if err != nil {
		return &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	if err := schemaIDs(ctx, registry, w.encoder, !p.noRegister); err != nil {
		return err
	}
	topics := []*topology.Topic{w.topic}
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
	w.writer, w.close = out, out.Close
	w.encoder.Limits = out.Limits(ctx, w.topic.Name)
	if keys == nil {
		return nil
	}
	ring := keyring.New(cfg, keys.Name, cluster.Topics[keys.Name].Partitions, keks, p.env.Now, w.log, w.metrics)
	ring.Writer, w.encoder.Ring = out, ring
	following, stop := context.WithCancel(context.WithoutCancel(ctx)) // as long as what was read is still sent
	var running sync.WaitGroup
	running.Go(func() {
		if err := ring.Run(following); err != nil {
			w.log.Error("the keys cannot be followed any more", "err", err)
		}
	})
	w.close = func() {
		stop()
		running.Wait()
		out.Close()
	}
	loading, cancel := context.WithTimeoutCause(ctx, p.patience, fmt.Errorf("not done in %v (--timeout)", p.patience))
	defer cancel()
	if err := ring.Loaded(loading); err != nil {
		w.close()
		return err
	}
	return nil
}

// schemaIDs finds out under which ids the registry has the schemas, and puts
// there those that it lacks if register is set.
func schemaIDs(ctx context.Context, registry event.Registry, encoder *event.Encoder, register bool) error {
	for _, t := range encoder.Types {
		id, err := event.SchemaID(ctx, registry, encoder.Topic, t.Schema, register)
		if err != nil {
			return fmt.Errorf("schema of %s: %w", t.Schema.Name(), err)
		}
		t.ID = id
	}
	return nil
}

// dryWriter takes everything and keeps nothing.
type dryWriter struct{}

func (dryWriter) Write(_ context.Context, _ *pipeline.Record, done func(error)) { done(nil) }
func (dryWriter) Flush(context.Context) error                                   { return nil }

// serve starts the HTTP server if one is asked for. The function it returns
// stops it and waits for that.
func (p *producer) serve(ctx context.Context, log *slog.Logger, metrics prometheus.Gatherer) (func(), error) {
	if p.server.Listen == "" {
		return func() {}, nil
	}
	server, err := worker.NewServer(p.server.Config(log, metrics))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Run(ctx); err != nil {
			log.Error("the HTTP server failed; events are sent all the same", "err", err)
		}
	})
	return func() {
		stop()
		running.Wait()
	}, nil
}

// summary is an outcome as --json prints it.
type summary struct {
	Topic           string         `json:"topic"`
	Sent            int            `json:"sent"` // Kafka has them
	ByType          map[string]int `json:"by_type"`
	Rejected        int            `json:"rejected"`         // bad lines
	Failed          int            `json:"failed,omitempty"` // Kafka did not take them
	Unknown         int            `json:"unknown,omitempty"`
	Seconds         float64        `json:"seconds"`
	EventsPerSecond float64        `json:"events_per_second"`
	CompleteTo      string         `json:"complete_to,omitempty"` // the line up to which nothing is missing
	Rejects         []string       `json:"rejects,omitempty"`     // files
	DryRun          bool           `json:"dry_run,omitempty"`
	Interrupted     bool           `json:"interrupted,omitempty"`
	Error           string         `json:"error,omitempty"`
}

// report says how it ended: for people on stderr, and for programs on stdout if
// that was asked for.
func (p *producer) report(topic string, out *sendOutcome) error {
	w := p.env.Stderr
	verb := "sent"
	if p.dryRun {
		verb = "checked, and did not send,"
	}
	fmt.Fprintf(w, "%s %d events to %s in %.1f s (%.0f per second)\n", verb, out.total, topic, out.took.Seconds(), perSecond(out.total, out.took))
	for _, name := range slices.Sorted(maps.Keys(out.sent)) {
		fmt.Fprintf(w, "  %-20s %10d\n", name, out.sent[name])
	}
	if out.rejected > 0 {
		fmt.Fprintf(w, "%d bad lines were not sent; they are kept in %s\n", out.rejected, strings.Join(out.rejects, ", "))
	}
	if out.err != nil || out.interrupted {
		if out.err != nil {
			fmt.Fprintf(w, "error: %v\n", out.err)
		} else {
			fmt.Fprintln(w, "interrupted")
		}
		complete := "not even the first line is known to be"
		if out.through.line > 0 {
			complete = "every good line up to " + out.through.String() + " is"
		}
		fmt.Fprintf(w, "Kafka acknowledged %d events; %s among them\n", out.total, complete)
	}
	if !p.asJSON {
		return nil
	}
	s := summary{
		Topic: topic, Sent: out.total, ByType: out.sent, Rejected: out.rejected, Failed: out.failed, Unknown: out.unknown,
		Seconds: out.took.Seconds(), EventsPerSecond: perSecond(out.total, out.took), CompleteTo: out.through.String(),
		Rejects: out.rejects, DryRun: p.dryRun, Interrupted: out.interrupted,
	}
	if out.err != nil {
		s.Error = out.err.Error()
	}
	enc := json.NewEncoder(p.env.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(s)
}

// write writes a source to a file, or to stdout if that is "-".
func (p *producer) write(ctx context.Context, name string, source lineSource) (err error) {
	if p.asJSON {
		return cli.Usagef("--json is about sending; with --out there is no summary")
	}
	var w io.Writer = p.env.Stdout
	if name != "-" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		w = f
	}
	n, err := writeLines(ctx, w, source)
	fmt.Fprintf(p.env.Stderr, "wrote %d events\n", n)
	if ctx.Err() != nil {
		return &cli.ExitError{Code: cli.ExitFailure, Err: errors.New("interrupted")}
	}
	return err
}
