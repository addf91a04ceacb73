// Package producer puts events on topics: from files, over HTTP, from a generator,
// and from dead-letter topics.
//
// Start at [Command]. send.go has the path from lines to acknowledged records,
// serve.go the HTTP endpoint, redrive.go the dead letters, rewrap.go and kek.go the keys of subjects, and connect.go what send,
// generate and serve share.
//
// A sender has one goroutine that reads, encodes and writes. The Kafka client calls
// back from others: the ledger (ledger.go) has a lock for both sides. The console's
// lock is independent of it; no code holds both. An intake serves every request in a
// goroutine of the HTTP server, with an encoder that the goroutine owns meanwhile.
package producer

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/keyring"
	"millrace/pipeline/worker"
)

// Command returns the command of the program producer.
func Command(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "producer",
		Short: "Put events on a topic: validated, Avro-encoded, in order for each key",
		Example: `  producer send events.jsonl.gz
  some-program | producer send -
  producer generate --events 10000 --seed 7
  producer generate --events 100 --out -`,
	}
	cmd.AddCommand(sendCommand(e), generateCommand(e), serveCommand(e), redriveCommand(e), rewrapCommand(e), newKEKCommand(e))
	return cmd
}

func sendCommand(e *cli.Env) *cobra.Command {
	p := &producer{env: e}
	cmd := &cobra.Command{
		Use:   "send [FILE...|-]",
		Short: "Send events from JSON lines",
		Long: `Sends the events of JSON lines, plain or gzip, from files or stdin (-, or no file).

An event has id, type, timestamp (RFC 3339), version, metadata and data. Only type
and data are required; the defaults of the others are a random UUID, the current
time, 1 and {}. The type selects one of the schemas that the topology gives the
topic.

A bad line is reported as FILE:LINE: FIELD: what was expected, and kept in a
rejects file; the valid lines are sent. Kafka has acknowledged every event that is
reported as sent. With --dry-run, no event is sent and no file is written.

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
	flags.BoolVar(&p.dryRun, "dry-run", false, "check every line; send nothing and write no file")
	return cmd
}

// producer has the flags that send, generate and serve share.
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
	patience    time.Duration // --timeout
}

// addFlags adds the flags. listen is the default of --listen.
func (p *producer) addFlags(cmd *cobra.Command, listen string) {
	flags := cmd.Flags()
	p.kafka = p.env.KafkaFlags(flags, "producer")
	p.registry = p.env.RegistryFlags(flags)
	p.topology = p.env.TopologyFlags(flags)
	p.log = p.env.LogFlags(flags)
	p.server = worker.AddServerFlags(p.env, flags, listen, defaultConns)
	p.kek = keyring.AddFlags(p.env, flags)
	flags.StringVar(&p.topic, "topic", "", "`topic` to send to (default: the only topic in the topology with event types)")
	flags.StringVar(&p.key, "key", "", "dotted `path` of the field that becomes the record key: the aggregate's id (default: the path in the topic's key, else data.id)")
	flags.BoolVar(&p.noRegister, "no-register", false, "use the schemas in the registry, and register none")
	flags.BoolVar(&p.noCreate, "no-create-topics", false, "fail if the topic does not exist, instead of creating it from the topology")
	flags.DurationVar(&p.patience, "timeout", 2*time.Minute, "give up if Kafka acknowledges nothing for this long")
	flags.BoolVar(&p.asJSON, "json", false, "print the summary as JSON on stdout")
	p.env.BindEnv(flags, "topic", "no-create-topics")
}

// send sends the lines of files. A file that cannot be read is an error before
// anything is sent.
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

// run sends the events of a source, which reads files.
func (p *producer) run(ctx context.Context, files []string, source func(context.Context) lineSource) error {
	c, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	stopServer, err := p.serve(ctx, c.log, c.metrics)
	if err != nil {
		return err
	}
	defer stopServer()

	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	s := &sender{
		encoder:  c.encoder,
		writer:   c.writer,
		rejects:  p.rejects(files),
		console:  &console{w: p.env.Stderr, terminal: p.env.Terminal},
		metrics:  newProducerMetrics(c.metrics, c.encoder.Types()),
		now:      p.env.Now,
		tick:     ticker.C,
		patience: p.patience,
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	var changed error
	var watch sync.WaitGroup
	watch.Go(func() {
		if changed = c.watch(reading); changed != nil {
			stop()
		}
	})
	out := s.run(reading, source(reading))
	stop()
	watch.Wait()
	if changed != nil {
		out.err, out.interrupted = changed, false
	}
	if err := p.report(c.topic.Name, out); err != nil {
		return err
	}
	if out.err != nil || out.interrupted || out.rejected > 0 {
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	return nil
}

// rejects returns where the bad lines of files are kept.
func (p *producer) rejects(files []string) *rejects {
	if p.dryRun {
		return &rejects{}
	}
	return &rejects{inputs: files, path: func(input string) string {
		if p.rejectsFile != "" {
			return p.rejectsFile
		}
		return input + ".rejects"
	}}
}
