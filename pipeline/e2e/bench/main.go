// Command bench compares the cost of an event in a Millrace pipeline with its cost in
// simple loops on the Kafka client. All loops run on the same broker and read the same
// events. `make bench` runs it.
//
// Each loop is a separate process with its own group. Its CPU time is the time that the
// system reports when the process ends, so it includes neither the broker nor this
// program. Start reading at [variants].
//
// `bench projector` runs the projector's benchmarks and compares them with their goals;
// see [probes].
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
)

//go:embed topology.yaml
var topologyYAML []byte

func main() {
	run := benchMain
	args := os.Args[1:]
	if len(args) > 0 {
		switch args[0] {
		case "naive":
			run, args = naiveMain, args[1:]
		case "projector":
			run, args = projectorMain, args[1:]
		case "profile":
			run, args = profileMain, args[1:]
		}
	}
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A variant is a loop over all events. Exactly one of pipeline and work is set.
type variant struct {
	key       string // identifies the variant in tables and ratios
	name      string
	guarantee string
	pipeline  string        // pipeline of topology.yaml, run by processor
	work      string        // work of a naive loop
	interval  time.Duration // between commits; 0 commits after every poll
}

// commitInterval is the commit interval of all variants except a0.
const commitInterval = 100 * time.Millisecond

// variants are the measured loops, in the order of a round.
var variants = []variant{
	{"a0", "copy, as in the client's example: a transaction for each poll", exactlyOnce, "", workCopy, 0},
	{"a", "copy only", exactlyOnce, "", workCopy, commitInterval},
	{"b", "Millrace: filter and enrich", exactlyOnce, "enrich", "", commitInterval},
	{"b2", "Millrace: filter, enrich and lookup", exactlyOnce, "lookup", "", commitInterval},
	{"c", "filter and enrich, decoding everything with goavro", exactlyOnce, "", workGoavro, commitInterval},
	{"da", "copy only", atLeastOnce, "", workCopy, commitInterval},
	{"db", "Millrace: filter and enrich", atLeastOnce, "enrich", "", commitInterval},
}

// bench is a run of this program. The main goroutine owns it.
type bench struct {
	bin     string // directory of the programs under test
	self    string // path of this program, which also runs the naive loops
	dir     string // temporary directory
	events  int
	rounds  int
	only    string  // value of -only
	pace    float64 // events/s for the latency; 0 means half of the rate at full load
	profile string  // directory for CPU profiles; "" means none
	cluster *cluster
	kinds   []eventKind
	size    int                          // mean size of an event in bytes
	samples map[string]map[string]string // by variant: the first output events, by id
}

func benchMain(args []string) (err error) {
	b := &bench{samples: map[string]map[string]string{}}
	var brokers, out string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&b.bin, "bin", "build/bin", "`directory` of the programs sandbox and processor")
	flags.StringVar(&brokers, "b", "", "`host:port` of an external Kafka; the program creates topics there that begin with bench-, and deletes them")
	flags.IntVar(&b.events, "events", 2_000_000, "number of events")
	flags.IntVar(&b.rounds, "rounds", 1, "how often to run each loop; the results are the means of the rounds")
	flags.StringVar(&b.only, "only", "", "run only these `variants` and steps (latency, chain), separated by commas; ratios need both of their variants")
	flags.Float64Var(&b.pace, "rate", 0, "`events` per second for the latency (default: half of the rate of the pipeline while events are sent and read)")
	flags.StringVar(&b.profile, "profile", "", "write CPU profiles to this `directory`")
	flags.StringVar(&out, "out", "", "write the results to their section of this `file`, such as docs/benchmarks.md")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if b.events < 1000 || b.rounds < 1 {
		return fmt.Errorf("%d events and %d rounds: want at least 1000 events and 1 round", b.events, b.rounds)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "millrace-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := b.writeFiles(); err != nil {
		return err
	}
	var list []string
	if brokers != "" {
		list = strings.Split(brokers, ",")
	}
	if b.cluster, err = open(ctx, b.bin, list); err != nil {
		return err
	}
	defer func() {
		if closed := b.cluster.close(); err == nil {
			err = closed
		}
	}()
	r, err := b.run(ctx)
	if err != nil {
		return err
	}
	if out != "" {
		if err := writeSection(out, "processor", r.markdown()); err != nil {
			return err
		}
	}
	r.print(os.Stdout)
	return nil
}

func (b *bench) writeFiles() error {
	if b.profile != "" {
		if err := os.MkdirAll(b.profile, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(b.dir, "users.csv"), usersCSV(), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "topology.yaml"), topologyYAML, 0o600)
}

// logf reports progress to the user.
func logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// selected reports whether -only selects a variant or step.
func (b *bench) selected(key string) bool {
	if b.only == "" {
		return true
	}
	for name := range strings.SplitSeq(b.only, ",") {
		if name == key {
			return true
		}
	}
	return false
}

// run fills a topic with events, runs all selected variants b.rounds times, and then
// measures latency and the chain.
func (b *bench) run(ctx context.Context) (*results, error) {
	registry, err := sr.NewClient(sr.URLs(b.cluster.registry))
	if err != nil {
		return nil, err
	}
	// The name is unique, because an external cluster may have topics and groups of
	// earlier runs.
	run := "bench-" + strconv.FormatInt(time.Now().Unix(), 36)
	input := run + ".events"
	defer b.delete(input)
	if b.kinds, err = kinds(ctx, registry, input); err != nil {
		return nil, err
	}
	if err := b.cluster.create(ctx, input); err != nil {
		return nil, err
	}
	began := time.Now()
	if b.size, err = fill(ctx, b.cluster.brokers, b.kinds, input, b.events); err != nil {
		return nil, err
	}
	logf("wrote %d events of %d bytes in %.1f s", b.events, b.size, time.Since(began).Seconds())
	r := &results{
		machine: machine(), broker: b.cluster.describe(ctx), events: b.events, size: b.size, rounds: b.rounds,
		day: time.Now().UTC().Format(time.DateOnly), measured: map[string][]measured{}, latency: map[string]time.Duration{},
	}
	for round := range b.rounds {
		for _, v := range variants {
			if !b.selected(v.key) {
				continue
			}
			m, err := b.measure(ctx, v, input, fmt.Sprintf("%s-%s-%d", run, v.key, round))
			if err != nil {
				return nil, fmt.Errorf("%s (%s, %s): %w", v.key, v.name, v.guarantee, err)
			}
			logf("%-3s %8.0f events/s  %6.3f us of CPU per event", v.key, m.rate, m.micros)
			r.measured[v.key] = append(r.measured[v.key], m)
		}
	}
	if b.selected("b") && b.selected("c") {
		if err := b.sameWork("b", "c"); err != nil {
			return nil, err
		}
	}
	if b.selected("latency") {
		if r.pace = b.pace; r.pace == 0 {
			full, err := b.fullLoad(ctx, variants[slices.IndexFunc(variants, func(v variant) bool { return v.key == "b" })], run+"-full")
			if err != nil {
				return nil, fmt.Errorf("full load: %w", err)
			}
			r.pace = full / 2
		}
		for _, v := range variants {
			if v.key != "a" && v.key != "b" {
				continue
			}
			if r.latency[v.key], err = b.latency(ctx, v, run+"-latency-"+v.key, r.pace); err != nil {
				return nil, fmt.Errorf("latency of %s: %w", v.key, err)
			}
		}
	}
	if b.selected("chain") {
		if r.chain, r.decimals, err = chainAlone(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// delete removes topics at the end of a step. It only logs an error, because an
// earlier error of the step matters more.
func (b *bench) delete(topics ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := b.cluster.adm.DeleteTopics(ctx, topics...); err != nil {
		logf("deleting topics %v: %v", topics, err)
	}
}

// processors returns the number of cores that each process may use.
func processors() int { return runtime.NumCPU() }

// start starts the process of a variant.
func (b *bench) start(v variant, group, input, output string) (*child, error) {
	env := []string{fmt.Sprintf("GOMAXPROCS=%d", processors())}
	brokers := strings.Join(b.cluster.brokers, ",")
	if v.pipeline == "" {
		args := []string{
			"naive", "-brokers", brokers, "-registry", b.cluster.registry, "-group", group, "-input", input, "-output", output,
			"-work", v.work, "-guarantee", v.guarantee, "-commit-interval", v.interval.String(),
		}
		if b.profile != "" {
			args = append(args, "-profile", filepath.Join(b.profile, v.key+".pprof"))
		}
		return start(b.self, env, args...)
	}
	// The processor's group is NAME-PIPELINE, so the topology's name is the group without
	// its suffix.
	env = append(env, "GROUP="+strings.TrimSuffix(group, "-"+v.pipeline), "INPUT="+input, "OUTPUT="+output, "GUARANTEE="+v.guarantee)
	args := []string{
		"run", "-b", brokers, "-r", b.cluster.registry, "-t", filepath.Join(b.dir, "topology.yaml"), "--pipeline", v.pipeline,
		"--sessions", "1", "--commit-interval", v.interval.String(), "--listen", "127.0.0.1:0", "--log-level", "warn",
	}
	if b.profile != "" {
		args = append(args, "--pprof", "--listen-file", filepath.Join(b.dir, "address"))
	}
	return start(filepath.Join(b.bin, "processor"), env, args...)
}

// measured is the result of one run of a variant.
type measured struct {
	rate   float64 // events per second between the first and the last observed commit; 0 if unknown
	micros float64 // CPU time of the process per event in microseconds, including start and stop
	memory float64 // peak resident memory in MiB; 0 if unknown
}

// measure runs a variant over all events and checks its output.
func (b *bench) measure(ctx context.Context, v variant, input, name string) (m measured, err error) {
	group, output := name, name+".out"
	if v.pipeline != "" {
		group += "-" + v.pipeline
	}
	topics := []string{output}
	if v.pipeline != "" {
		topics = append(topics, output+".dead_letters")
	}
	defer b.delete(topics...)
	if err := b.cluster.create(ctx, output); err != nil {
		return m, err
	}
	c, err := b.start(v, group, input, output)
	if err != nil {
		return m, err
	}
	stopProfile := b.profileOf(ctx, v)
	total := int64(b.events)
	var first, last time.Time
	var before int64
	err = await(ctx, 5*time.Minute, "all events committed", func() (bool, error) {
		n, err := b.cluster.committed(ctx, group, input)
		if err != nil {
			return false, err
		}
		if n > 0 && first.IsZero() {
			first, before = time.Now(), n
		}
		last = time.Now()
		if n == total {
			return true, nil
		}
		return false, c.alive()
	})
	stopProfile()
	if err != nil {
		_ = c.stop() // err is more important
		return m, err
	}
	if err := c.stop(); err != nil {
		return m, err
	}
	m.micros = float64(c.cpu().Microseconds()) / float64(total)
	m.memory = resident(c.cmd.ProcessState)
	if seconds := last.Sub(first).Seconds(); seconds > 0 {
		m.rate = float64(total-before) / seconds
	}
	b.samples[v.key], err = b.sample(ctx, output, total)
	return m, err
}

// machine describes this machine.
func machine() string {
	model := runtime.GOARCH
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores, %s/%s, %s", model, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}
