// Package demo holds the commands of the program sandbox: run starts an embedded broker and
// a schema registry, up also starts the other programs, and demo checks every event and
// every state once.
//
// Start reading at [Command] and at demo.run. The goroutine of the command owns a demo. Each
// child process has a goroutine that waits for its end, and the events are sent by another
// goroutine.
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
	"millrace/pipeline/kafka/properties"
	"millrace/pipeline/private"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/server"
	"millrace/pipeline/worker"
)

// Default addresses of the sandbox.
const (
	kafkaAddress    = properties.DefaultBroker
	registryAddress = "127.0.0.1:8085"
)

// Command returns the root command of the program sandbox.
func Command(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Run Kafka and a schema registry on this machine, and all of Millrace on them",
		Long: `An embedded broker that speaks Kafka's protocol, with transactions and groups, and a
schema registry with real compatibility checks. Nothing needs to be installed. It is
for development and tests, not for production.

  Kafka            ` + kafkaAddress + `
  schema registry  ` + cli.DefaultRegistry + `

These are the default addresses of all programs of Millrace. run --kafka-listen and
--registry-listen change them; --data-dir keeps all data for the next run.`,
		Example: `  sandbox run
  sandbox run --data-dir ~/.local/share/millrace
  sandbox up --bin build/bin
  sandbox demo --bin build/bin --out build/demo.json`,
	}
	cmd.AddCommand(runCommand(e), upCommand(e), demoCommand(e))
	return cmd
}

func runCommand(e *cli.Env) *cobra.Command {
	var cfg sandbox.Config
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a broker and a schema registry until a signal",
		Long: `Runs a broker and a schema registry until SIGINT or SIGTERM. A topic must be created
before its first use, as processor and projector do. A new version of a schema must be
able to read all old versions (` + sandbox.DefaultCompatibility + `), unless the registry is
configured otherwise.

Without --data-dir, all data is in memory and is lost at the end. With it, topics,
records, committed offsets and schemas survive a restart; it is slower, because every
write is synced. Only one sandbox at a time can use a directory.`,
		Example: `  sandbox run
  sandbox run --data-dir data/sandbox
  sandbox run --kafka-listen 127.0.0.1:0 --registry-listen 127.0.0.1:0`,
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.KafkaAddr, "kafka-listen", kafkaAddress, "`host:port` of the broker, on the loopback interface; port 0 selects a free port")
	flags.StringVar(&cfg.RegistryAddr, "registry-listen", registryAddress, "`host:port` of the schema registry, on the loopback interface; port 0 selects a free port")
	flags.StringVar(&cfg.DataDir, "data-dir", "", "`directory` that keeps all data across restarts (default: in memory)")
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

// printSandbox prints the addresses of a sandbox and how to use it.
func printSandbox(w io.Writer, box *sandbox.Sandbox, dir string) {
	data := "in memory, lost at the end"
	if dir != "" {
		data = dir
	}
	brokers, registry := strings.Join(box.Brokers(), ","), box.RegistryURL()
	fmt.Fprintf(w, `The sandbox is running.

  Kafka            %s
  schema registry  %s
  data             %s

In other terminals:

  processor run%[4]s
  projector run --data-dir data/projector%[4]s
  producer generate --events 1000%[4]s

Other clients of Kafka and of Confluent's schema registry work too:

  kcat -b %[1]s -L
  curl %[2]s/subjects

Ctrl-C stops it.
`, brokers, registry, data, addressFlags(brokers, registry))
}

// addressFlags returns the flags with the addresses of a sandbox, without those that are the
// defaults of all programs.
func addressFlags(brokers, registry string) (flags string) {
	if brokers != properties.DefaultBroker {
		flags += " -b " + brokers
	}
	if registry != cli.DefaultRegistry {
		flags += " -r " + registry
	}
	return flags
}

func upCommand(e *cli.Env) *cobra.Command {
	d := &demo{env: e, logLevel: "warn", show: true}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a broker, a schema registry, a processor and a projector until a signal",
		Long: `Runs a broker, a schema registry, a processor and a projector until SIGINT or
SIGTERM. All data is in memory or in a directory that is removed at the end. Each
listens at its default address, or on a free port if that is in use.

The processor and the projector get the environment, such as MILLRACE_KEK, without
the variables with addresses and credentials of another cluster.`,
		Example: `  sandbox up --bin build/bin
  sandbox up --bin build/bin -t topology.yaml`,
	}
	d.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d.listen = func(addr string) string { return freeAddress(cmd.Context(), addr) }
		return d.up(cmd.Context())
	}
	return cmd
}

func demoCommand(e *cli.Env) *cobra.Command {
	d := &demo{env: e, logLevel: "info", listen: func(string) string { return "127.0.0.1:0" }}
	var out string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Send events through all of Millrace once, and check every number",
		Long: `Runs a broker, a schema registry, a processor and a projector on free ports, sends
the events of a shop, waits until all are processed and folded, and stops everything.

Then it compares every event on the output topic with the events that were sent: each
came out once, in the order of its aggregate, or was filtered, or is a dead letter. It
also compares every state of the projector with the state that follows from the events.

Exit code 0 only if every number agrees.`,
		Example: `  sandbox demo --bin build/bin
  sandbox demo --bin build/bin --events events.jsonl.gz --out demo.json
  sandbox demo --bin build/bin --count 200000 --kill`,
	}
	d.addFlags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "also write the report as JSON to a `file`")
	flags.StringVar(&d.events, "events", "", "send the JSON lines of a `file`, plain or gzip, instead of synthetic events")
	flags.IntVar(&d.count, "count", 10_000, "send `n` synthetic events")
	flags.Uint64Var(&d.seed, "seed", 1, "seed of the synthetic events, any number `n`")
	flags.StringSliceVarP(&d.brokers, "brokers", "b", nil, "`host:port` of an external cluster without authentication and without the topics, instead of the sandbox's broker")
	flags.BoolVar(&d.kill, "kill", false, "kill -9 the processor and the projector while they work, and start them again")
	flags.DurationVar(&timeout, "timeout", 5*time.Minute, "give up after this time")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if d.events != "" && (cmd.Flags().Changed("count") || cmd.Flags().Changed("seed")) {
			return cli.Usagef("--count and --seed are for synthetic events, not for those of --events")
		}
		if d.events == "" && d.count <= 0 {
			return cli.Usagef("--count: want a number of 1 or more, not %d", d.count)
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("not done after %v; use a longer --timeout", timeout))
		defer cancel()
		return d.runAndReport(ctx, out)
	}
	return cmd
}

// runAndReport runs the demo and prints the report. out, if not empty, is a file that
// receives the report too.
func (d *demo) runAndReport(ctx context.Context, out string) error {
	r, err := d.run(ctx)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	}
	r.print(d.env.Stdout)
	if out != "" {
		if err := r.write(out); err != nil {
			return err
		}
		fmt.Fprintf(d.env.Stderr, "The report is also in %s.\n", out)
	}
	if len(r.Disagreements) > 0 {
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	return nil
}

// write writes the report as JSON.
func (r *Report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := private.Dir(filepath.Dir(path)); err != nil {
		return err
	}
	return server.WriteFile(path, string(data)+"\n")
}

func (d *demo) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&d.bin, "bin", ownDir(), "`directory` with the programs producer, processor and projector")
	d.dial = worker.AddDialFlags(d.env, flags)
	flags.StringVarP(&d.topology, "topology", "t", "topology.yaml", "topology `file`; demo needs the shop's or a variant of it")
}

// ownDir returns the directory of this program, which usually has the other programs too.
func ownDir() string {
	self, err := os.Executable()
	if err != nil {
		return "."
	}
	return filepath.Dir(self)
}

// freeAddress returns addr if it is free, else an address with a free port.
func freeAddress(ctx context.Context, addr string) string {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return "127.0.0.1:0"
	}
	_ = l.Close() // it has no connections
	return addr
}
