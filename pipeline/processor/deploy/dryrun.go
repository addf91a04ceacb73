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

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

func DryRunCommand(e *cli.Env) *cobra.Command {
	d := &dryRun{env: e}
	cmd := &cobra.Command{
		Use:   "dry-run [PIPELINE...]",
		Short: "Check that pipelines would work, and run some events through them without writing",
		Long: `Checks the topology as lint does, then connects: brokers and registry answer,
topics are there as declared or could be created, schemas of what is written are
registered or compatible, and what this user may do is enough, as far as the
cluster tells. Then it reads committed events of each pipeline's source, and runs
them through the pipeline by the code of workers.

Nothing is written, created, registered or committed, and no group is joined.
Stages remember what they remembered when a worker came to the first event read.
A stage that asks a service does ask it.

Exit code 0 if all would work; 1 with the faults if not; 2 if the command line or
the topology is wrong. Dead letters are no fault.`,
		Example: `  processor dry-run
  processor dry-run enrich --offset -1000 --num 1000 --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, names []string) error { return d.run(cmd.Context(), names) },
	}
	flags := cmd.Flags()
	d.remote = worker.AddRemoteFlags(e, flags)
	flags.IntVarP(&d.num, "num", "n", 100, "how many events to read of each source, at most; 0 reads none")
	flags.StringVar(&d.offset, "offset", "start", "`position` to read from: start, -N for the last N events, or end for new ones")
	flags.DurationVar(&d.wait, "wait", 10*time.Second, "with --offset end, how long to wait for events")
	flags.IntVar(&d.samples, "samples", 3, "how many records to show of what would be written, and of dead letters")
	flags.StringVar(&d.instance, "instance", "", "`name` of the worker whose transactional id is looked at (default: the host's name)")
	flags.BoolVar(&d.json, "json", false, "print JSON, a line for each finding, stage and record")
	return cmd
}

type dryRun struct {
	env      *cli.Env
	remote   *worker.RemoteFlags
	num      int
	offset   string
	last     int // of --offset -N
	wait     time.Duration
	samples  int
	instance string
	json     bool

	out    cli.Printer
	faults int
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
		d.instance = worker.Hostname()
	}
	d.out = cli.Printer{Out: d.env.Stdout}
	for _, warning := range w.Topology.Warnings() {
		d.print(checked{"topology", stateNote, strings.TrimSpace(topology.Faults{warning.Fault}.Error())})
	}
	in := inspection{Worker: w, instance: d.instance}
	if err := in.look(ctx, pipelines); err != nil {
		return err
	}
	for _, f := range in.found {
		d.print(f)
	}
	if in.usable && d.num > 0 {
		err := chain.WithTables(w, ctx, in.cluster, pipelines, func(ctx context.Context) error {
			for _, pl := range pipelines {
				if err := d.sample(ctx, w, in.cluster, pl); err != nil {
					return fmt.Errorf("pipeline %s: %w", pl.Name, err)
				}
			}
			return nil
		})
		if err != nil {
			d.print(checked{State: stateFault, What: "events", Text: err.Error()})
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

// States of what was looked at.
const (
	stateOK    = "ok"
	stateNew   = "new"  // a worker would make it
	stateNote  = "note" // it works, but may not be what was meant
	stateFault = "fault"
)

// checked is one thing that was looked at.
type checked struct {
	What  string `json:"check"`
	State string `json:"state"`
	Text  string `json:"text"`
}

func (d *dryRun) print(c checked) {
	if c.State == stateFault {
		d.faults++
	}
	if d.json {
		d.out.Line("%s", cli.CompactJSON(c))
		return
	}
	d.out.Line("%-5s  %s: %s", c.State, c.What, c.Text)
}

// inspection looks at all that pipelines need, without effect.
type inspection struct {
	*worker.Worker
	instance string

	cluster kafka.Description
	usable  bool // brokers and registry answer
	found   []checked
}

func (in *inspection) say(state, what, format string, args ...any) {
	in.found = append(in.found, checked{what, state, fmt.Sprintf(format, args...)})
}

// use is what a pipeline does with a topic.
type use struct {
	spec kafka.TopicSpec
	ops  []string
}

// uses returns the topics that pipelines use, each once.
func (in *inspection) uses(pipelines []*topology.Pipeline) (all []*use) {
	add := func(spec kafka.TopicSpec, ops ...string) {
		i := slices.IndexFunc(all, func(u *use) bool { return u.spec.Name == spec.Name })
		if i < 0 {
			i = len(all)
			all = append(all, &use{spec: spec})
		}
		for _, op := range ops {
			if !slices.Contains(all[i].ops, op) {
				all[i].ops = append(all[i].ops, op)
			}
		}
	}
	for _, pl := range pipelines {
		add(worker.TopicSpecs(pl.From)[0], "READ", "DESCRIBE")
		for _, t := range append(pl.Writes(), pl.SideTopics()...) {
			add(worker.TopicSpecs(t)[0], "WRITE", "DESCRIBE")
		}
	}
	for _, t := range chain.TablesOf(in.Topology, pipelines...) {
		if t.Topic != nil {
			add(worker.TopicSpecs(t.Topic)[0], "READ", "DESCRIBE")
		}
	}
	return all
}

func (in *inspection) look(ctx context.Context, pipelines []*topology.Pipeline) error {
	if err := in.Kafka.Ping(ctx); err != nil {
		in.say(stateFault, "brokers", "%v", err)
	}
	if err := in.Registry.Ping(ctx); err != nil {
		in.say(stateFault, "registry", "%v", err)
	}
	if len(in.found) > 0 {
		return nil
	}
	uses := in.uses(pipelines)
	var topics, groups, txns []string
	for _, u := range uses {
		topics = append(topics, u.spec.Name)
	}
	for _, pl := range pipelines {
		for _, s := range chain.StateTopics(in.Topology, pl, 0) {
			topics = append(topics, s.Name)
		}
		groups = append(groups, in.Topology.Group(pl))
		if pl.Guarantee == topology.ExactlyOnce {
			txns = append(txns, in.Topology.Group(pl)+"-"+in.instance+"-0")
		}
	}
	var err error
	if in.cluster, err = kafka.Describe(ctx, in.Kafka, topics, groups, txns); err != nil {
		in.say(stateFault, "brokers", "%v", err)
		return nil
	}
	in.usable = true
	in.say(stateOK, "brokers", "cluster %s answers", in.cluster.ID)
	in.say(stateOK, "registry", "it answers")
	for _, pl := range pipelines {
		partitions := in.cluster.Topics[pl.From.Name].Partitions
		if partitions == 0 {
			partitions = pl.From.Partitions
		}
		for _, s := range chain.StateTopics(in.Topology, pl, partitions) {
			uses = append(uses, &use{s, []string{"READ", "WRITE", "DESCRIBE", "DELETE"}})
		}
	}
	if err := in.lookAtTopics(ctx, uses); err != nil {
		return err
	}
	for _, pl := range pipelines {
		if err := in.lookAtSchemas(ctx, pl); err != nil {
			return err
		}
	}
	for _, g := range groups {
		in.lookAtGroup(g)
	}
	for _, id := range txns {
		if err := in.cluster.Hidden[id]; err != nil {
			in.say(stateFault, "transactional id "+id, "%v: allow WRITE and DESCRIBE on it", err)
		} else {
			in.say(stateOK, "transactional id "+id, "it can be asked for; whether it may be written with is not told")
		}
	}
	return nil
}

func (in *inspection) lookAtTopics(ctx context.Context, uses []*use) error {
	var missing []kafka.TopicSpec
	for _, u := range uses {
		what := "topic " + u.spec.Name
		have, ok := in.cluster.Topics[u.spec.Name]
		switch {
		case in.cluster.Hidden[u.spec.Name] != nil:
			in.say(stateFault, what, "%v: allow DESCRIBE on it", in.cluster.Hidden[u.spec.Name])
		case !ok:
			missing = append(missing, u.spec)
		case u.spec.Partitions > 0 && have.Partitions != u.spec.Partitions:
			in.say(stateFault, what, "it has %s, but is declared with %d: keys would move; declare it as it is", cli.Plural(have.Partitions, "partition"), u.spec.Partitions)
		default:
			if lack := have.Allowed.Lack(u.ops...); len(lack) > 0 {
				in.say(stateFault, what, "this user may not %s: allow it", strings.Join(lack, ", "))
				continue
			}
			takes := ""
			if have.MaxMessage > 0 && slices.Contains(u.ops, "WRITE") {
				takes = fmt.Sprintf(", records of %s bytes at most", cli.GroupDigits(int64(in.cluster.Limits().Record(u.spec.Name))))
			}
			in.say(stateOK, what, "%s%s", cli.Plural(have.Partitions, "partition"), takes)
			for _, key := range slices.Sorted(maps.Keys(u.spec.Config)) {
				if got, set := have.Config[key]; have.Config != nil && (!set || got != u.spec.Config[key]) {
					in.say(stateNote, what, "%s is %s, but is declared as %s: processor apply sets it", key, orDefault(got, set), u.spec.Config[key])
				}
			}
		}
	}
	faults, err := kafka.CheckTopics(ctx, in.Kafka, missing)
	if err != nil {
		return err
	}
	for _, spec := range missing {
		if err := faults[spec.Name]; err != nil {
			in.say(stateFault, "topic "+spec.Name, "it does not exist, and could not be created: %v", err)
			continue
		}
		in.say(stateNew, "topic "+spec.Name, "it does not exist; a worker would create it with %s", partitionsText(spec.Partitions))
	}
	return nil
}

func orDefault(value string, set bool) string {
	if !set {
		return "not set"
	}
	return value
}

func partitionsText(n int) string {
	if n == 0 {
		return "as many partitions as the brokers like"
	}
	return cli.Plural(n, "partition")
}

func (in *inspection) lookAtSchemas(ctx context.Context, pl *topology.Pipeline) error {
	for i, s := range pl.Output {
		for _, topic := range pl.Targets[i] {
			subject := codec.Subject(topic.Name, s)
			state, text, err := outputState(ctx, in.Registry, subject, s)
			if err != nil {
				return err
			}
			in.say(state, "schema "+subject, "%s", text)
		}
	}
	return nil
}

// outputState says whether a schema is registered, or could be.
func outputState(ctx context.Context, registry *codec.Registry, subject string, s *codec.Schema) (state, text string, err error) {
	id, err := registry.Lookup(ctx, subject, s)
	if err == nil {
		return stateOK, fmt.Sprintf("registered, id %d", id), nil
	}
	if !errors.Is(err, codec.ErrNotRegistered) {
		return "", "", err
	}
	switch err := registry.Compatible(ctx, subject, s); {
	case errors.Is(err, codec.ErrIncompatible):
		return stateFault, err.Error(), nil
	case err != nil:
		return "", "", err
	}
	return stateNew, "not registered yet, and compatible with what is", nil
}

func (in *inspection) lookAtGroup(name string) {
	what := "group " + name
	if err := in.cluster.Hidden[name]; err != nil {
		in.say(stateFault, what, "%v: allow READ and DESCRIBE on it", err)
		return
	}
	g := in.cluster.Groups[name]
	if lack := g.Allowed.Lack("READ", "DESCRIBE"); len(lack) > 0 {
		in.say(stateFault, what, "this user may not %s: allow it", strings.Join(lack, ", "))
		return
	}
	if len(g.Committed) == 0 && g.Members == 0 {
		in.say(stateNew, what, "nobody has worked yet: a worker would begin at the start of the source")
		return
	}
	in.say(stateOK, what, "%s", cli.Plural(g.Members, "member"))
}

// sampled is what became of the events that were read.
type sampled struct {
	Pipeline    string                  `json:"pipeline"`
	In          int                     `json:"in"`
	Out         int                     `json:"out"`
	Filtered    int                     `json:"filtered"`
	DeadLetters map[pipeline.Reason]int `json:"dead_letters"`
}

// sample runs events through a pipeline.
func (d *dryRun) sample(ctx context.Context, w *worker.Worker, cluster kafka.Description, pl *topology.Pipeline) error {
	if !d.json {
		d.out.Line("")
		d.out.Line("pipeline %s", pl.Name)
	}
	if cluster.Hidden[pl.From.Name] != nil {
		return nil // that has been said
	}
	if _, ok := cluster.Topics[pl.From.Name]; !ok {
		d.print(checked{"events of " + pl.From.Name, stateNote, "there are none, for the topic does not exist"})
		return nil
	}
	r := chain.NewRehearsal(w, pl, cluster.Limits())
	counts := chain.Counts{Dead: map[pipeline.Reason]int{}}
	var written, letters []chain.SampleRecord
	err := d.read(ctx, w, pl, func(partition int32, next int64) error {
		return r.Assign(ctx, cluster, partition, next)
	}, func(in *pipeline.Record) error {
		out, err := r.Feed(ctx, in, &counts)
		if err != nil {
			return err
		}
		for i := range out {
			list := &written
			if out[i].Topic == r.DeadLetter {
				list = &letters
			}
			if len(*list) < d.samples {
				*list = append(*list, r.Sample(in, &out[i]))
			}
		}
		r.Next()
		return nil
	})
	if err != nil {
		return err
	}
	d.printStages(r)
	total := sampled{pl.Name, counts.In, counts.Out, counts.Filtered, counts.Dead}
	if d.json {
		for _, s := range append(written, letters...) {
			s.Pipeline = pl.Name
			d.out.Line("%s", cli.CompactJSON(s))
		}
		d.out.Line("%s", cli.CompactJSON(total))
		return nil
	}
	dead := 0
	for _, n := range counts.Dead {
		dead += n
	}
	d.out.Line("  %s of %s: %d would be written, %d filtered, %s", cli.Plural(counts.In, "event"), pl.From.Name, counts.Out, counts.Filtered, cli.Plural(dead, "dead letter"))
	for _, reason := range slices.Sorted(maps.Keys(counts.Dead)) {
		d.out.Line("    %d %s", counts.Dead[reason], reason)
	}
	for _, s := range written {
		d.out.Line("  to %s, key %s, of %s/%d@%d:", s.To, cli.Quote(s.Key), s.Topic, s.Partition, s.Offset)
		d.out.Line("    %s %s", s.Type, s.Event)
	}
	for _, s := range letters {
		d.out.Line("  to %s, key %s, of %s/%d@%d:", s.To, cli.Quote(s.Key), s.Topic, s.Partition, s.Offset)
		d.out.Line("    %s: %s", s.Stage, cli.Clip(s.Error, 300))
	}
	return nil
}

func (d *dryRun) printStages(r *chain.Rehearsal) {
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
	if !d.json && len(r.Plan.Stages) > 0 {
		d.out.Line("  %-20s %8s %8s %8s %8s %8s %8s", "stage", "in", "passed", "filtered", "rejected", "skipped", "added")
	}
	r.Stages.Counts(func(stage string, n pipeline.StageCounts) {
		if d.json {
			d.out.Line("%s", cli.CompactJSON(line{r.Pipeline, stage, n.In, n.Added, n.Passed, n.Filtered, n.Skipped, n.Rejected}))
			return
		}
		rejected := 0
		for _, count := range n.Rejected {
			rejected += count
		}
		d.out.Line("  %-20s %8s %8s %8s %8s %8s %8s", stage, cli.DashIfZero(n.In), cli.DashIfZero(n.Passed), cli.DashIfZero(n.Filtered), cli.DashIfZero(rejected), cli.DashIfZero(n.Skipped), cli.DashIfZero(n.Added))
	})
}

// errEnough ends reading.
var errEnough = errors.New("enough")

// read calls f with the events that the flags ask for, as many of each partition
// as there are, or all alike. begin is called before the first of a partition.
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

func (d *dryRun) readNew(ctx context.Context, w *worker.Worker, pl *topology.Pipeline, begin func(partition int32, next int64) error, f func(*pipeline.Record) error) error {
	waiting, stop := context.WithTimeout(ctx, d.wait)
	defer stop()
	begun, left := map[int32]bool{}, d.num
	err := kafka.ReadNew(waiting, w.Kafka, pl.From.Name, func(r *pipeline.Record) error {
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

// shares divides a number of records among partitions, as evenly as what is
// there allows.
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
