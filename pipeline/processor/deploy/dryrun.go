package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// DryRunCommand returns `processor dry-run`.
func DryRunCommand(e *cli.Env) *cobra.Command {
	d := &dryRun{env: e}
	cmd := &cobra.Command{
		Use:   "dry-run [PIPELINE...]",
		Short: "Check that pipelines would work, and run some events through them without writing",
		Long: `Check the topology like lint, then connect and check that the brokers and the
registry are reachable, that topics exist as declared or could be created, that
output schemas are registered or compatible, and that this user has the necessary
permissions, as far as the cluster reports them. Then read committed events from
the source of each pipeline, and run them through the pipeline with the code of
workers.

dry-run writes, creates, registers and commits nothing, and joins no group. Stages
start with the state that they had when a worker reached the first event. Services
are not called: a stage http passes its events unchanged. --call-services sends the
requests, POST and PUT included.

Exit code 0 if everything would work; 1 with the faults if not; 2 if the command
line or the topology is wrong. Dead letters are not faults.`,
		Example: `  processor dry-run
  processor dry-run enrich --offset -1000 --num 1000 --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, names []string) error { return d.run(cmd.Context(), names) },
	}
	flags := cmd.Flags()
	d.remote = worker.AddRemoteFlags(e, flags)
	flags.IntVarP(&d.num, "num", "n", 100, "read at most `n` events of each source; 0 reads none")
	flags.StringVar(&d.offset, "offset", "start", "`position` to read from: start, -N for the last N events, or end for new ones")
	flags.DurationVar(&d.wait, "wait", 10*time.Second, "with --offset end, how long to wait for events")
	flags.IntVar(&d.samples, "samples", 3, "maximum number of output records, and of dead letters, to show for each pipeline")
	flags.StringVar(&d.instance, "instance", "", "`name` of the worker whose transactional ids are checked (default: the host's name)")
	flags.BoolVar(&d.services, "call-services", false, "send the requests of http stages")
	addTransactionTimeout(e, flags, &d.transactionTimeout)
	flags.BoolVar(&d.json, "json", false, "print JSON, one line for each finding, stage and record")
	return cmd
}

// addTransactionTimeout adds the flag of workers that limits how long stages may wait.
func addTransactionTimeout(e *cli.Env, flags *pflag.FlagSet, to *time.Duration) {
	flags.DurationVar(to, "transaction-timeout", worker.DefaultTransactionTimeout, "this flag of the workers: pipelines whose stages wait longer do not start")
	e.BindEnv(flags, "transaction-timeout")
}

// A dryRun holds the flags of the command and its output.
type dryRun struct {
	env      *cli.Env
	remote   *worker.RemoteFlags
	num      int
	offset   string
	last     int // N of --offset -N, otherwise 0
	wait     time.Duration
	samples  int
	instance string
	services bool
	json     bool

	transactionTimeout time.Duration // of the workers

	out    cli.Printer
	faults int // printed so far
}

func (d *dryRun) run(ctx context.Context, names []string) error {
	if n, err := strconv.Atoi(d.offset); err == nil && n < 0 {
		d.last = -n
	} else if d.offset != "start" && d.offset != "end" {
		return cli.Usagef("--offset: %q is none of start, end and -N", d.offset)
	}
	if d.num < 0 || d.samples < 0 {
		return cli.Usagef("--num and --samples cannot be negative")
	}
	w, err := d.remote.Open()
	if err != nil {
		return err
	}
	pipelines, err := d.remote.Select(w, names)
	if err != nil {
		return err
	}
	if d.instance == "" {
		d.instance = worker.DefaultInstance()
	}
	d.out = cli.Printer{Out: d.env.Stdout}
	for _, warning := range w.Topology.Warnings() {
		d.print(finding{"topology", stateNote, strings.TrimSpace(topology.Faults{warning.Fault}.Error())})
	}
	for _, pl := range pipelines {
		if err := chain.CheckHoldTime(pl, d.transactionTimeout); err != nil {
			d.print(finding{"pipeline " + pl.Name, stateFault, err.Error()})
		}
	}
	in := inspection{worker: w, instance: d.instance}
	if err := in.check(ctx, pipelines); err != nil {
		return err
	}
	for _, f := range in.found {
		d.print(f)
	}
	if in.usable && d.num > 0 {
		err := chain.WithTables(ctx, w, in.cluster, pipelines, func(ctx context.Context) error {
			for _, pl := range pipelines {
				if err := d.sample(ctx, w, in.cluster, pl); err != nil {
					return fmt.Errorf("pipeline %s: %w", pl.Name, err)
				}
			}
			return nil
		})
		if err != nil {
			d.print(finding{State: stateFault, What: "events", Text: err.Error()})
		}
	}
	if !d.json {
		d.out.Line("")
		if d.faults > 0 {
			d.out.Line("%s: it would not work", cli.Plural(d.faults, "fault"))
		} else {
			d.out.Line("no faults; nothing was written")
		}
	}
	if d.out.Err == nil && d.faults > 0 {
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	return d.out.Err
}

func (d *dryRun) print(f finding) {
	if f.State == stateFault {
		d.faults++
	}
	if d.json {
		d.out.Line("%s", cli.CompactJSON(f))
		return
	}
	d.out.Line("%-5s  %s: %s", f.State, f.What, f.Text)
}

// sampled counts the outcomes of the events of one pipeline.
type sampled struct {
	Pipeline    string                  `json:"pipeline"`
	In          int                     `json:"in"`
	Out         int                     `json:"out"`
	Filtered    int                     `json:"filtered"`
	DeadLetters map[pipeline.Reason]int `json:"dead_letters"`
}

// sample runs events through a pipeline and prints the outcomes.
func (d *dryRun) sample(ctx context.Context, w *worker.Worker, cluster kafka.Description, pl *topology.Pipeline) error {
	if !d.json {
		d.out.Line("")
		d.out.Line("pipeline %s", pl.Name)
	}
	if cluster.Hidden[pl.From.Name] != nil {
		return nil // the inspection reported it
	}
	if _, ok := cluster.Topics[pl.From.Name]; !ok {
		d.print(finding{"events of " + pl.From.Name, stateNote, "none, because the topic does not exist"})
		return nil
	}
	r := chain.NewRehearsal(w, pl, cluster)
	if !d.services {
		r.SpareServices()
	}
	spared := 0
	counts := chain.Counts{Dead: map[pipeline.Reason]int{}}
	var written, letters []chain.SampleRecord
	err := d.read(ctx, w, pl, func(partition int32, next int64) error {
		return r.Restore(ctx, cluster, partition, next)
	}, func(in *pipeline.Record) error {
		if r.Skips(in) {
			return nil
		}
		out, err := r.Run(ctx, in)
		if err != nil {
			return err
		}
		counts.Add(out)
		if r.Spared() {
			spared++
		}
		for i := range out {
			list := &written
			if out[i].DeadLetter() {
				list = &letters
			}
			if len(*list) < d.samples {
				*list = append(*list, out[i].Sample(in))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if spared > 0 {
		d.print(finding{"pipeline " + pl.Name, stateNote, fmt.Sprintf("%s passed a stage http unchanged, because no service was called: --call-services sends the requests", cli.Plural(spared, "event"))})
	}
	d.printStages(pl, r)
	total := sampled{pl.Name, counts.In, counts.Out, counts.Filtered, counts.Dead}
	if d.json {
		for _, s := range append(written, letters...) {
			s.Pipeline = pl.Name
			d.out.Line("%s", cli.CompactJSON(s))
		}
		d.out.Line("%s", cli.CompactJSON(total))
		return nil
	}
	d.printSample(pl, total, written, letters)
	return nil
}

// printSample prints the counts of a pipeline, and examples of its output records
// and dead letters, as text.
func (d *dryRun) printSample(pl *topology.Pipeline, counts sampled, written, letters []chain.SampleRecord) {
	dead := 0
	for _, n := range counts.DeadLetters {
		dead += n
	}
	d.out.Line("  %s of %s: %d would be written, %d filtered, %s", cli.Plural(counts.In, "event"), pl.From.Name, counts.Out, counts.Filtered, cli.Plural(dead, "dead letter"))
	for _, reason := range slices.Sorted(maps.Keys(counts.DeadLetters)) {
		d.out.Line("    %d %s", counts.DeadLetters[reason], reason)
	}
	for _, s := range written {
		d.out.Line("  to %s, key %s, of %s/%d@%d:", s.To, cli.Quote(s.Key), s.Topic, s.Partition, s.Offset)
		if s.Tombstone {
			d.out.Line("    tombstone")
			continue
		}
		d.out.Line("    %s %s", s.Type, s.Event)
	}
	for _, s := range letters {
		d.out.Line("  to %s, key %s, of %s/%d@%d:", s.To, cli.Quote(s.Key), s.Topic, s.Partition, s.Offset)
		d.out.Line("    %s: %s", s.Stage, cli.Clip(s.Error, 300))
	}
}

// printStages prints the counts of each stage.
func (d *dryRun) printStages(pl *topology.Pipeline, r *chain.Rehearsal) {
	type line struct {
		Pipeline string                  `json:"pipeline"`
		Stage    string                  `json:"stage"`
		In       int                     `json:"in"`
		Added    int                     `json:"added"`
		Passed   int                     `json:"passed"`
		Filtered int                     `json:"filtered"`
		Skipped  int                     `json:"skipped"`
		Rejected map[pipeline.Reason]int `json:"rejected"`
	}
	if !d.json && len(pl.Stages) > 0 {
		d.out.Line("  %-20s %8s %8s %8s %8s %8s %8s", "stage", "in", "passed", "filtered", "rejected", "skipped", "added")
	}
	r.StageCounts(func(stage string, n pipeline.StageCounts) {
		if d.json {
			d.out.Line("%s", cli.CompactJSON(line{pl.Name, stage, n.In, n.Added, n.Passed, n.Filtered, n.Skipped, n.Rejected}))
			return
		}
		rejected := 0
		for _, count := range n.Rejected {
			rejected += count
		}
		d.out.Line("  %-20s %8s %8s %8s %8s %8s %8s", stage, cli.DashIfZero(n.In), cli.DashIfZero(n.Passed), cli.DashIfZero(n.Filtered), cli.DashIfZero(rejected), cli.DashIfZero(n.Skipped), cli.DashIfZero(n.Added))
	})
}

// errEnough stops reading when enough events were read.
var errEnough = errors.New("enough")

// read calls f with the events that the flags select, an even share of each
// partition. It calls begin with the offset of the first event of each partition
// before f.
func (d *dryRun) read(ctx context.Context, w *worker.Worker, pl *topology.Pipeline, begin func(partition int32, next int64) error, f func(*pipeline.Record) error) error {
	if d.offset == "end" {
		return d.readNew(ctx, w, pl, begin, f)
	}
	bounds, err := kafka.TopicBounds(ctx, w.Kafka, pl.From.Name, false)
	if err != nil {
		return err
	}
	want := d.num
	if d.last > 0 {
		want = min(want, d.last)
	}
	each := shares(bounds, want)
	for _, p := range slices.Sorted(maps.Keys(each)) {
		b, share := bounds[p], each[p]
		if d.last > 0 {
			b.Start = b.End - share
		}
		if err := begin(p, b.Start); err != nil {
			return err
		}
		left := share
		err := kafka.ReadRange(ctx, w.Kafka, pl.From.Name, p, b, func(r *pipeline.Record) error {
			if left == 0 {
				return errEnough
			}
			left--
			if err := f(r); err != nil || left > 0 {
				return err
			}
			return errEnough
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
	}
	return nil
}

// readNew does the same as read for events that are written from now on.
func (d *dryRun) readNew(ctx context.Context, w *worker.Worker, pl *topology.Pipeline, begin func(partition int32, next int64) error, f func(*pipeline.Record) error) error {
	waiting, stop := context.WithTimeout(ctx, d.wait)
	defer stop()
	begun, left := map[int32]bool{}, d.num
	err := kafka.FollowTopic(waiting, w.Kafka, pl.From.Name, func(r *pipeline.Record) error {
		if !begun[r.Partition] {
			begun[r.Partition] = true
			if err := begin(r.Partition, r.Offset); err != nil {
				return err
			}
		}
		if err := f(r); err != nil {
			return err
		}
		if left--; left == 0 {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return errors.Join(err, ctx.Err())
}

// shares divides a number of records among partitions as evenly as their sizes
// allow. It returns the number of records for each partition with at least one.
func shares(bounds map[int32]kafka.Bounds, want int) map[int32]int64 {
	out := map[int32]int64{}
	byCount := slices.SortedFunc(maps.Keys(bounds), func(a, b int32) int {
		x, y := bounds[a].End-bounds[a].Start, bounds[b].End-bounds[b].Start
		return int(min(1, max(-1, x-y)))
	})
	left := int64(want)
	for i, p := range byCount {
		n := min(bounds[p].End-bounds[p].Start, (left+int64(len(byCount)-i)-1)/int64(len(byCount)-i))
		left -= n
		if n > 0 {
			out[p] = n
		}
	}
	return out
}
