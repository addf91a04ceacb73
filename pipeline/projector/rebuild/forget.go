package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// remainder is a place that still holds something of what was erased.
type remainder struct {
	Where string `json:"where"`
	What  string `json:"what"`
	Until string `json:"until"`
}

// erasure is what forget did, and what it could not do.
type erasure struct {
	Projection string   `json:"projection"`
	ID         string   `json:"id"`
	Workers    []string `json:"workers"` // that have erased it
	Silent     []string `json:"silent"`  // that could not be asked
	Tombstones []string `json:"tombstones"`
	// Key says that the key of the aggregate's personal data was destroyed. It is
	// nil where none is encrypted under its id.
	Key  *destroyedKey `json:"key,omitempty"`
	Left []remainder   `json:"left"`
}

// destroyedKey is what became of a subject's key.
type destroyedKey struct {
	Topic     string `json:"topic"`
	Destroyed int    `json:"destroyed"` // 0: it had none, or it was destroyed before
}

// forgetPatience is how long forget waits for workers to have erased something.
const forgetPatience = time.Minute

func ForgetCommand(e *cli.Env) *cobra.Command {
	var o *operator
	cmd := &cobra.Command{
		Use:   "forget NAME ID",
		Short: "Erase an aggregate, for good, and say where something of it is left",
		Long: `Writes down, on the control topic, that the projection must not have the aggregate:
no version folds its events any more, however often the log is read again. The
workers delete its states and its events from their disks, and snapshots topics
get a null in its place.

If the topology encrypts personal fields, and the aggregate is the subject of them,
its key is destroyed, too, and none is made for it again: producers refuse its events.

What other places hold of it is listed, with how long: the events themselves, what
pipelines have made of them, dead letters, other projections. The id stays in the
control topic: without it, nothing could be kept from coming back.

Exit code 0 if all workers have erased it; 1 if some could not be asked: they do
it when they are back.`,
		Example: `  projector forget user u-000001`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			w, state, pr, err := o.projection(ctx, args[0])
			if err != nil {
				return err
			}
			id := args[1]
			record := control.ForgottenRecord{Format: control.Format, Time: e.Now().UTC(), By: e.Build.Version}
			if err := o.say(ctx, w, control.Record{Key: control.ForgottenKey(pr.Name, id), Value: record}); err != nil {
				return err
			}
			out := &erasure{Projection: pr.Name, ID: id, Workers: []string{}, Silent: []string{}, Tombstones: []string{}}
			if err := out.destroy(ctx, w, pr, record.Time); err != nil {
				return err
			}
			out.await(ctx, state)
			if err := out.bury(ctx, w, state, record.Time); err != nil {
				return err
			}
			if err := out.report(ctx, w, state, pr); err != nil {
				return err
			}
			if o.json {
				err = cli.PrintJSON(e.Stdout, out)
			} else {
				err = out.print(e.Stdout)
			}
			if err == nil && len(out.Silent) > 0 {
				return &cli.ExitError{Code: cli.ExitFailure}
			}
			return err
		},
	}
	o = newOperator(e, cmd.Flags())
	return cmd
}

// await asks the workers until they have erased it.
func (x *erasure) await(ctx context.Context, state *control.State) {
	ctx, cancel := context.WithTimeout(ctx, forgetPatience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for _, instance := range slices.Sorted(maps.Keys(state.Workers)) {
		for {
			err := askWorker(ctx, state.Workers[instance].Address, "/internal/v1/forgotten/"+url.PathEscape(x.Projection)+"/"+url.PathEscape(x.ID), func(io.Reader) error { return nil })
			if err == nil {
				x.Workers = append(x.Workers, instance)
				break
			}
			if !errors.Is(err, errNotYet) || ctx.Err() != nil {
				x.Silent = append(x.Silent, fmt.Sprintf("%s: %v", instance, err))
				break
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}
}

// destroy destroys the key of the aggregate's personal data, if that is encrypted
// under its id.
func (x *erasure) destroy(ctx context.Context, w *worker.Worker, pr *topology.Projection, at time.Time) error {
	keys := keyring.Topic(w.Topology)
	if keys == nil || !pr.Subjects {
		return nil
	}
	cluster, err := kafka.EnsureTopics(ctx, w.Kafka, worker.TopicSpecs(keys), true)
	if err != nil {
		return err
	}
	out, err := kafka.NewWriter(w.Kafka)
	if err != nil {
		return err
	}
	defer out.Close()
	partition := kafka.PartitionOf([]byte(x.ID), cluster.Topics[keys.Name].Partitions)
	n, err := keyring.DestroyKeys(ctx, out, keys.Name, partition, x.ID, at, func(f func(*pipeline.Record) error) error {
		_, err := kafka.ReadSettled(ctx, w.Kafka, keys.Name, partition, f)
		return err
	})
	x.Key = &destroyedKey{keys.Name, n}
	return err
}

// bury writes a null in the place of each snapshot. The workers do so too, with
// their next transaction; but that may be long in coming, if no events do.
func (x *erasure) bury(ctx context.Context, w *worker.Worker, state *control.State, at time.Time) error {
	var nulls []*pipeline.Record
	for _, n := range state.Numbers(x.Projection) {
		topic := state.Versions[x.Projection][n].Snapshots
		nulls = append(nulls, &pipeline.Record{Topic: topic, Partition: pipeline.KeyPartition, Key: []byte(x.ID), Time: at})
		x.Tombstones = append(x.Tombstones, topic)
	}
	return kafka.WriteOnce(ctx, w.Kafka, nulls...)
}

// report finds out what is left, from how topics are configured.
func (x *erasure) report(ctx context.Context, w *worker.Worker, state *control.State, pr *topology.Projection) error {
	names := slices.Clone(x.Tombstones)
	names = append(names, pr.From.Name)
	outputs := map[string]string{}
	for _, pl := range w.Topology.Pipelines {
		if pl.From.Name != pr.From.Name && !slices.ContainsFunc(pl.Writes(), func(t *topology.Topic) bool { return t.Name == pr.From.Name }) {
			continue
		}
		if pl.From.Name != pr.From.Name {
			outputs[pl.From.Name] = "the events that pipeline " + pl.Name + " reads"
		}
		for _, t := range pl.Writes() {
			if t.Name != pr.From.Name {
				outputs[t.Name] = "what pipeline " + pl.Name + " made of its events"
			}
		}
		if pl.DeadLetter != nil {
			outputs[pl.DeadLetter.Name] = "its events that pipeline " + pl.Name + " could not process"
		}
	}
	for name := range outputs {
		names = append(names, name)
	}
	keys := keyring.Topic(w.Topology)
	if keys != nil {
		names = append(names, keys.Name)
	}
	cluster, err := kafka.Describe(ctx, w.Kafka, names, nil, nil)
	if err != nil {
		return err
	}
	left := func(where, what, until string) { x.Left = append(x.Left, remainder{where, what, until}) }
	left(pr.From.Name, "its events", retained(cluster.Topics[pr.From.Name]))
	for _, topic := range x.Tombstones {
		left(topic, "its older snapshots", compacted(cluster.Topics[topic]))
	}
	for _, name := range slices.Sorted(maps.Keys(outputs)) {
		if t, ok := cluster.Topics[name]; ok {
			left(name, outputs[name], retained(t))
		}
	}
	for _, other := range w.Topology.Projections {
		if other.Name != pr.Name {
			left("projection "+other.Name, "whatever it took over from its events, under ids of its own", "it is forgotten there: projector forget "+other.Name+" ID")
		}
	}
	switch {
	case x.Key != nil:
		for i := range x.Left {
			x.Left[i].What += "; what is encrypted of it cannot be read any more"
		}
		left(keys.Name, "the record of its key as it was, for who has the key-encryption key", compacted(cluster.Topics[keys.Name]))
		left(keys.Name, "its id, as a mark that no key is made for it again", "for ever")
	case keys != nil:
		left(keys.Name, "the keys of encrypted fields: they are not of "+pr.Name+" "+x.ID+", but of those whom the fields are about", "the subject is forgotten: projector forget PROJECTION ID, of a projection with the subjects as its aggregates")
	}
	left(control.Topic(w.Topology), "its id, as a fence against its return", "for ever")
	return nil
}

// Defaults of Kafka, where a topic says nothing.
const (
	defaultRetention       = "7 days, unless the brokers say otherwise (log.retention.ms), after its last event, and up to a segment longer"
	defaultDeleteRetention = 24 * time.Hour
)

// retained says until when a topic keeps a record.
func retained(t kafka.TopicState) string {
	if t.Config == nil {
		return "not known: its configuration may not be seen"
	}
	if t.Config["cleanup.policy"] == "compact" {
		return "for ever, unless a later record has the same key"
	}
	text, ok := t.Config["retention.ms"]
	ms, err := strconv.ParseInt(text, 10, 64)
	switch {
	case !ok || err != nil:
		return defaultRetention
	case ms < 0:
		return "for ever: its retention.ms is -1"
	}
	return fmt.Sprintf("%v after its last event, and up to a segment longer (segment.ms, segment.bytes)", time.Duration(ms)*time.Millisecond)
}

// compacted says until when a compacted topic keeps what a null replaces.
func compacted(t kafka.TopicState) string {
	if t.Config == nil {
		return "not known: its configuration may not be seen"
	}
	marker := defaultDeleteRetention
	if ms, err := strconv.ParseInt(t.Config["delete.retention.ms"], 10, 64); err == nil {
		marker = time.Duration(ms) * time.Millisecond
	}
	ms, err := strconv.ParseInt(t.Config["max.compaction.lag.ms"], 10, 64)
	if err != nil {
		return fmt.Sprintf("no bound: max.compaction.lag.ms is not set, so it is there until brokers compact that part; the null itself for %v more", marker)
	}
	return fmt.Sprintf("%v from now, and as long as the cleaner then takes; the null itself for %v more", time.Duration(ms)*time.Millisecond, marker)
}

func (x *erasure) print(w io.Writer) error {
	out := cli.Printer{Out: w}
	out.Line("%s %s is forgotten: erased by %s, a null on %s", x.Projection, x.ID, cli.Plural(len(x.Workers), "worker"), cli.Plural(len(x.Tombstones), "snapshots topic"))
	if x.Key != nil {
		out.Line("Its key is destroyed (%s on %s): what is encrypted under it cannot be read any more, wherever it is", cli.Plural(x.Key.Destroyed, "record"), x.Key.Topic)
	}
	for _, s := range x.Silent {
		out.Line("  ! not asked: %s. It erases it when it is back", s)
	}
	out.Line("What is left of it, and until when:")
	if out.Err != nil {
		return out.Err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range x.Left {
		fmt.Fprintf(t, "  %s\t%s\t%s\n", l.Where, l.What, l.Until)
	}
	return t.Flush()
}
