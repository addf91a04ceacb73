package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/worker"
)

// Where a sandbox and what it runs listen if nothing else is said.
const (
	KafkaAddress    = kafka.DefaultBroker
	sandboxRegistry = "127.0.0.1:8085"
)

// Command returns the command of the program that is Kafka and a schema registry
// on a laptop, and runs all of Millrace on them.
func Command(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Kafka and a schema registry on this machine, and all of Millrace on them",
		Long: `An embedded broker that speaks Kafka's protocol, transactions and groups
included, and a schema registry with real compatibility checks. Nothing to
install; for a laptop and for tests, not for production.

  Kafka            ` + KafkaAddress + `
  schema registry  ` + cli.DefaultRegistry + `

These are where every program of Millrace looks if it is told nothing else.
Others are given with run --kafka-listen and --registry-listen; --data-dir keeps
what there is for the next time.`,
		Example: `  sandbox run
  sandbox run --data-dir ~/.local/share/millrace
  sandbox up --bin build/bin
  sandbox demo --bin build/bin --out build/demo.json`,
	}
	cmd.AddCommand(RunCommand(e), UpCommand(e), DemoCommand(e))
	return cmd
}

func RunCommand(e *cli.Env) *cobra.Command {
	var cfg sandbox.Config
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a broker and a schema registry until told to stop",
		Long: `Runs a broker and a schema registry until SIGINT or SIGTERM. Topics are not
created by use, only by request, as the processor and the projector do it. New
versions of a schema have to read every old one (` + sandbox.DefaultCompatibility + `)
unless the registry is told otherwise.

Without --data-dir everything is in memory and gone at the end. With it, topics,
records, committed offsets and schemas are there again after a restart; every
write is synced, which makes it slower. One sandbox at a time has a directory.`,
		Example: `  sandbox run
  sandbox run --data-dir data/sandbox
  sandbox run --kafka-listen 127.0.0.1:0 --registry-listen 127.0.0.1:0`,
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.KafkaAddr, "kafka-listen", KafkaAddress, "`host:port` of the broker, on this machine alone; port 0 takes a free one")
	flags.StringVar(&cfg.RegistryAddr, "registry-listen", sandboxRegistry, "`host:port` of the schema registry, on this machine alone; port 0 takes a free one")
	flags.StringVar(&cfg.DataDir, "data-dir", "", "`directory` that keeps everything across restarts (default: in memory)")
	log := e.LogFlags(flags)
	e.BindEnv(flags, "kafka-listen", "registry-listen")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if cfg.Logger, err = log.Logger(); err != nil {
			return err
		}
		box, err := sandbox.New(cfg)
		if err != nil {
			return err
		}
		printSandbox(e.Stdout, box, cfg.DataDir)
		<-cmd.Context().Done()
		return box.Close()
	}
	return cmd
}

// printSandbox says where a sandbox is and how to use it.
func printSandbox(w io.Writer, box *sandbox.Sandbox, dir string) {
	data := "in memory, gone at the end"
	if dir != "" {
		data = dir
	}
	brokers, registry := strings.Join(box.Brokers(), ","), box.RegistryURL()
	at := reachFlags(brokers, registry)
	fmt.Fprintf(w, `The sandbox is running.

  Kafka            %s
  schema registry  %s
  data             %s

In other terminals:

  processor run%[4]s
  projector run --data-dir data/projector%[4]s
  producer generate --events 1000%[4]s

Any other client of Kafka, and of Confluent's schema registry, works as well:

  kcat -b %[1]s -L
  curl %[2]s/subjects

Ctrl-C stops it.
`, brokers, registry, data, at)
}

// reachFlags returns the flags by which the programs find a sandbox, none if it
// is where they look anyway.
func reachFlags(brokers, registry string) (flags string) {
	if brokers != kafka.DefaultBroker {
		flags += " -b " + brokers
	}
	if registry != cli.DefaultRegistry {
		flags += " -r " + registry
	}
	return flags
}

func UpCommand(e *cli.Env) *cobra.Command {
	d := &demo{env: e, logLevel: "warn", show: true}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a broker, a schema registry, a processor and a projector until told to stop",
		Long: `Runs a broker, a schema registry, a processor and a projector until SIGINT or
SIGTERM, all in memory or in a directory that is removed at the end. Each listens
where it always does, or, if that is taken, on a free port.`,
		Example: `  sandbox up --bin build/bin`,
	}
	d.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d.listen = func(addr string) string { return freeAddress(cmd.Context(), addr) }
		return d.up(cmd.Context())
	}
	return cmd
}

func DemoCommand(e *cli.Env) *cobra.Command {
	d := &demo{env: e, logLevel: "info", listen: func(string) string { return "127.0.0.1:0" }}
	var out string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Send events through all of Millrace once, and check every number",
		Long: `Runs a broker, a schema registry, a processor and a projector on free ports,
sends the events of a shop, waits until all are processed and folded, and stops
everything.

Then every event on the output topic is compared with the events that were sent:
each came out once, in the order of its aggregate, or was filtered, or is a dead
letter. And every state that the projector answers with is compared with what the
events add up to.

Exit code 0 only if every number agrees.`,
		Example: `  sandbox demo --bin build/bin
  sandbox demo --bin build/bin --events events.jsonl.gz --out demo.json
  sandbox demo --bin build/bin --count 200000 --kill`,
	}
	d.addFlags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "write the report as JSON to a `file`, too")
	flags.StringVar(&d.events, "events", "", "send the JSON lines of a `file`, plain or gzip, instead of made-up events")
	flags.IntVar(&d.count, "count", 10_000, "how many events to make up")
	flags.Uint64Var(&d.seed, "seed", 1, "`number` that decides what happens in the made-up shop")
	flags.StringSliceVarP(&d.brokers, "brokers", "b", nil, "`host:port` of an outside cluster without passwords, that has none of the topics, instead of the sandbox's broker")
	flags.BoolVar(&d.kill, "kill", false, "kill -9 the processor and the projector in the midst of their work, and start them again")
	flags.DurationVar(&timeout, "timeout", 5*time.Minute, "give up after so long")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if d.events != "" && (cmd.Flags().Changed("count") || cmd.Flags().Changed("seed")) {
			return cli.Usagef("--count and --seed are for made-up events, not for those of --events")
		}
		if d.events == "" && d.count <= 0 {
			return cli.Usagef("--count: %d events are none", d.count)
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("not done after %v; --timeout gives more", timeout))
		defer cancel()
		r, err := d.run(ctx)
		if err != nil {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return err
		}
		r.print(e.Stdout)
		if out != "" {
			if err := r.write(out); err != nil {
				return err
			}
			fmt.Fprintf(e.Stderr, "The report is in %s, too.\n", out)
		}
		if len(r.Disagreements) > 0 {
			return &cli.ExitError{Code: cli.ExitFailure}
		}
		return nil
	}
	return cmd
}

func (d *demo) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&d.bin, "bin", d.besides(), "`directory` with the programs producer, processor and projector")
	flags.StringVarP(&d.topology, "topology", "t", "topology.yaml", "topology `file`, of the shop or a variant of it")
}

// besides returns the directory of this program: the others are mostly there.
func (*demo) besides() string {
	self, err := os.Executable()
	if err != nil {
		return "."
	}
	return filepath.Dir(self)
}

// freeAddress returns the address if nobody listens there, else one with a free
// port.
func freeAddress(ctx context.Context, addr string) string {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return "127.0.0.1:0"
	}
	_ = l.Close() // it took no connection
	return addr
}

// write writes the report as JSON.
func (r *Report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return worker.WriteFile(path, string(data)+"\n")
}
