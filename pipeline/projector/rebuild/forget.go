package rebuild

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
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

// remainder is a place that still holds data of an erased aggregate.
type remainder struct {
	Where string `json:"where"`
	What  string `json:"what"` // the data
	Until string `json:"until"`
}

// erasure is the result of forget.
type erasure struct {
	Projection string   `json:"projection"`
	ID         string   `json:"id"`
	DryRun     bool     `json:"dry_run,omitempty"` // nothing was erased
	States     int      `json:"states"`            // that the workers had, of all versions and windows
	Workers    []string `json:"workers"`           // that have erased the aggregate
	Silent     []string `json:"silent"`            // workers that did not confirm, with the reasons
	Tombstones []string `json:"tombstones"`        // snapshots topics with a null for the aggregate

	// Key is nil if no personal data is encrypted under the aggregate's id.
	Key  *destroyedKey `json:"key,omitempty"`
	Left []remainder   `json:"left"`

	internal []string // topics of internal records
}

// destroyedKey is the destroyed key of a data subject.
type destroyedKey struct {
	Topic     string `json:"topic"`
	Destroyed int    `json:"destroyed"` // records; 0: there was no key, or it was destroyed before
}

func forgetCommand(e *cli.Env) *cobra.Command {
	var o *operator
	var how forgetFlags
	cmd := &cobra.Command{
		Use:   "forget NAME ID | forget --subject ID",
		Short: "Erase an aggregate permanently, and list the places that still hold its data",
		Long: `Records on the control topic that the projection must not have the aggregate: no
version folds its events any more, however often the log is read again. The workers
delete its states and its events from their disks, and a null replaces its snapshot
on the snapshots topics.

If the topology encrypts personal fields and the aggregate is their data subject,
forget also destroys its key. No new key is created: producers refuse its events.

--subject forgets a data subject that is no aggregate of a projection: it destroys the
key only. All that is encrypted with it is unreadable, everywhere. Aggregates stay,
with these fields hidden.

An id that no worker has is an error, unless it was forgotten before. --force forgets it
all the same.

forget lists the other places that hold its data, and for how long: the events
themselves, the output of pipelines, dead letters, other projections. The id stays
on the control topic, because it is needed to recognize the aggregate.

Exit code 0 if all workers have erased the aggregate; 1 if some workers did not
answer: they erase it when they are back.`,
		Example: `  projector forget user u-000001 --dry-run
  projector forget user u-000001 --yes
  projector forget --subject u-000001 --yes`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("subject") {
				if len(args) > 0 {
					return cli.Usagef("--subject names a data subject: give no projection and no aggregate")
				}
				return nil
			}
			return cobra.ExactArgs(2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return o.forgetSubject(cmd.Context(), how)
			}
			return o.forget(cmd.Context(), args[0], args[1], how)
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().StringVar(&how.subject, "subject", "", "`id` of a data subject of which only the key is destroyed")
	cmd.Flags().BoolVar(&how.dryRun, "dry-run", false, "only show what would be erased, and what remains")
	cmd.Flags().BoolVar(&how.yes, "yes", false, "confirm: nothing can bring the aggregate back")
	cmd.Flags().BoolVar(&how.force, "force", false, "forget an id that no worker has, or a subject without a key")
	e.CompleteProjection(cmd)
	return cmd
}

// forgetFlags are the flags of forget.
type forgetFlags struct {
	subject            string
	dryRun, yes, force bool
}

func (o *operator) forget(ctx context.Context, name, id string, how forgetFlags) error {
	if !how.dryRun && !how.yes {
		return cli.Usagef("forget erases %s %s permanently: add --yes, or see with --dry-run what it erases", name, id)
	}
	w, state, pr, err := o.projection(ctx, name)
	if err != nil {
		return err
	}
	x := &erasure{Projection: pr.Name, ID: id, DryRun: how.dryRun, Workers: []string{}, Silent: []string{}, Tombstones: []string{}}
	if err := x.find(ctx, w, state, pr, how.force); err != nil {
		return err
	}
	if how.dryRun {
		for _, n := range state.Numbers(pr.Name) {
			x.addTopics(state.Versions[pr.Name][n])
		}
		return o.report(ctx, w, pr, x)
	}
	record := control.ForgottenRecord{Format: control.Format, Time: o.env.Now().UTC(), By: o.env.Build.Version}
	if err := o.write(ctx, w, control.Record{Key: control.ForgottenKey(pr.Name, id), Value: record}); err != nil {
		return err
	}
	if err := x.destroyKey(ctx, w, pr, record.Time); err != nil {
		return err
	}
	x.await(ctx, w, state)
	if err := x.writeTombstones(ctx, w, state, record.Time); err != nil {
		return err
	}
	return o.report(ctx, w, pr, x)
}

// report prints the result. It fails if a worker did not confirm.
func (o *operator) report(ctx context.Context, w *worker.Worker, pr *topology.Projection, x *erasure) (err error) {
	if err := x.listRemainders(ctx, w, pr); err != nil {
		return err
	}
	if o.json {
		err = cli.PrintJSON(o.env.Stdout, x)
	} else {
		err = x.print(o.env.Stdout)
	}
	if err == nil && len(x.Silent) > 0 {
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	return err
}

// find sets States. It fails if nobody has anything of the aggregate.
func (x *erasure) find(ctx context.Context, w *worker.Worker, state *control.State, pr *topology.Projection, force bool) error {
	var silent []string
	for _, instance := range slices.Sorted(maps.Keys(state.Workers)) {
		n := 0
		err := getWorker(ctx, w.Dial, state.Workers[instance].Address, "/internal/v1/states/"+url.PathEscape(x.Projection)+"/"+url.PathEscape(x.ID), func(body io.Reader) error { return json.NewDecoder(body).Decode(&n) })
		if err != nil {
			silent = append(silent, instance)
		}
		x.States += n
	}
	if _, before := state.Forgotten[x.Projection][x.ID]; before || force || x.States > 0 {
		return nil
	}
	n, err := x.countKeys(ctx, w, pr)
	switch {
	case n > 0 || err != nil:
		return err
	case len(silent) > 0 || len(state.Workers) == 0:
		return fmt.Errorf("it is unknown whether projection %s has %q: %s did not answer. Try again, or use --force", x.Projection, x.ID, cmp.Or(strings.Join(silent, ", "), "no worker"))
	}
	return fmt.Errorf("projection %s has no aggregate %q: not found on any worker; --force forgets the id all the same", x.Projection, x.ID)
}

// countKeys returns the number of keys that destroyKey would destroy.
func (x *erasure) countKeys(ctx context.Context, w *worker.Worker, pr *topology.Projection) (int, error) {
	keys := keyring.Topic(w.Topology)
	if keys == nil || !pr.Subjects {
		return 0, nil
	}
	n, _, err := countKeys(ctx, w, keys, x.ID)
	return n, err
}

// await polls the workers, in order, until each has erased the aggregate.
func (x *erasure) await(ctx context.Context, w *worker.Worker, state *control.State) {
	ctx, cancel := context.WithTimeout(ctx, workerTimeout)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for _, instance := range slices.Sorted(maps.Keys(state.Workers)) {
		for {
			err := getWorker(ctx, w.Dial, state.Workers[instance].Address, "/internal/v1/forgotten/"+url.PathEscape(x.Projection)+"/"+url.PathEscape(x.ID), func(io.Reader) error { return nil })
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

// destroyKey destroys the key of the aggregate's personal data, if there is one under its id.
func (x *erasure) destroyKey(ctx context.Context, w *worker.Worker, pr *topology.Projection, at time.Time) (err error) {
	if keys := keyring.Topic(w.Topology); keys != nil && pr.Subjects {
		x.Key, err = destroyKeys(ctx, w, keys, x.ID, at)
	}
	return err
}

// addTopics adds the topics of a version.
func (x *erasure) addTopics(r control.VersionRecord) {
	x.Tombstones = append(x.Tombstones, r.Snapshots)
	if r.Internal != "" {
		x.internal = append(x.internal, r.Internal)
	}
}

// writeTombstones writes a null for each snapshot. The workers do so too, but only with their
// next transaction, which needs events.
func (x *erasure) writeTombstones(ctx context.Context, w *worker.Worker, state *control.State, at time.Time) error {
	var nulls []*pipeline.Record
	for _, n := range state.Numbers(x.Projection) {
		x.addTopics(state.Versions[x.Projection][n])
	}
	cluster, err := kafka.Describe(ctx, w.Kafka, x.Tombstones, nil, nil)
	if err != nil {
		return err
	}
	for _, topic := range x.Tombstones {
		// A snapshot is in the partition of its events, which the id alone need not tell.
		for p := range cluster.Topics[topic].Partitions {
			nulls = append(nulls, &pipeline.Record{Topic: topic, Partition: int32(p), Key: []byte(x.ID), Time: at})
		}
	}
	return kafka.WriteOnce(ctx, w.Kafka, nulls...)
}

// listRemainders sets Left, from the configuration of the topics.
func (x *erasure) listRemainders(ctx context.Context, w *worker.Worker, pr *topology.Projection) error {
	related := relatedTopics(w.Topology, pr)
	names := append(slices.Clone(x.Tombstones), x.internal...)
	names = append(names, pr.From.Name)
	for name := range related {
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
	for _, topic := range x.internal {
		left(topic, "its id, and the offsets of its events, if it was blocked", compacted(cluster.Topics[topic]))
	}
	for _, name := range slices.Sorted(maps.Keys(related)) {
		if t, ok := cluster.Topics[name]; ok {
			left(name, related[name], retained(t))
		}
	}
	for _, other := range w.Topology.Projections {
		if other.Name != pr.Name {
			left("projection "+other.Name, "data that it took from its events, under other ids", "it is forgotten there: projector forget "+other.Name+" ID")
		}
	}
	switch {
	case x.Key != nil:
		for i := range x.Left {
			x.Left[i].What += "; the encrypted fields are unreadable"
		}
		left(keys.Name, "the old record of its key, readable with the key-encryption key", compacted(cluster.Topics[keys.Name]))
		left(keys.Name, "its id, so that no new key is created", "for ever")
	case keys != nil:
		left(keys.Name, "the keys of encrypted fields: they belong to the data subjects of the fields, not to "+pr.Name+" "+x.ID, "the subject is forgotten: projector forget --subject ID")
	}
	left(control.Topic(w.Topology), "its id, so that its events are not folded again", "for ever")
	return nil
}

// relatedTopics returns the topics of pipelines that read or write the projection's source
// topic, without that topic, with the data that they can hold of an aggregate.
func relatedTopics(t *topology.Topology, pr *topology.Projection) map[string]string {
	out := map[string]string{}
	for _, pl := range t.Pipelines {
		if pl.From.Name != pr.From.Name && !slices.ContainsFunc(pl.Writes(), func(t *topology.Topic) bool { return t.Name == pr.From.Name }) {
			continue
		}
		if pl.From.Name != pr.From.Name {
			out[pl.From.Name] = "the events that pipeline " + pl.Name + " reads"
		}
		for _, t := range pl.Writes() {
			if t.Name != pr.From.Name {
				out[t.Name] = "the output of pipeline " + pl.Name + " for its events"
			}
		}
		if pl.DeadLetter != nil {
			out[pl.DeadLetter.Name] = "its events that pipeline " + pl.Name + " rejected"
		}
	}
	return out
}

// Kafka's defaults for settings that a topic does not have.
const (
	defaultRetention       = "7 days after its last event, unless the brokers have another log.retention.ms, and up to a segment longer"
	defaultDeleteRetention = 24 * time.Hour
)

// retained describes how long a topic keeps a record.
func retained(t kafka.TopicState) string {
	if t.Config == nil {
		return "unknown: no permission to read the topic's configuration"
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

// compacted describes how long a compacted topic keeps a record after a null with its key.
func compacted(t kafka.TopicState) string {
	if t.Config == nil {
		return "unknown: no permission to read the topic's configuration"
	}
	marker := defaultDeleteRetention.String()
	if ms, err := strconv.ParseInt(t.Config["delete.retention.ms"], 10, 64); err == nil {
		marker = (time.Duration(ms) * time.Millisecond).String()
		if years := ms / (365 * 24 * time.Hour).Milliseconds(); years > 1 {
			marker = fmt.Sprint(years, " years")
		}
	}
	ms, err := strconv.ParseInt(t.Config["max.compaction.lag.ms"], 10, 64)
	if err != nil {
		return fmt.Sprintf("no bound: max.compaction.lag.ms is not set, so it stays until the brokers compact that segment; the null stays %s longer", marker)
	}
	return fmt.Sprintf("%v from now, and until the cleaner is done; the null stays %s longer", time.Duration(ms)*time.Millisecond, marker)
}

func (x *erasure) print(w io.Writer) error {
	out := cli.Printer{Out: w}
	if x.DryRun {
		out.Line("%s %s would be forgotten: %s on the workers, and a null on %s", x.Projection, x.ID, cli.Plural(x.States, "state"), cli.Plural(len(x.Tombstones), "snapshots topic"))
		out.Line("Data that would remain, and until when:")
		return printLeft(w, x.Left, out.Err)
	}
	out.Line("%s %s is forgotten: erased by %s, a null on %s", x.Projection, x.ID, cli.Plural(len(x.Workers), "worker"), cli.Plural(len(x.Tombstones), "snapshots topic"))
	if x.Key != nil {
		out.Line("Its key is destroyed (%s on %s): everything encrypted with it is unreadable, everywhere", cli.Plural(x.Key.Destroyed, "record"), x.Key.Topic)
	}
	for _, s := range x.Silent {
		out.Line("  ! no confirmation: %s. The worker erases it when it is back", s)
	}
	out.Line("Remaining data, and until when:")
	return printLeft(w, x.Left, out.Err)
}

// printLeft prints what remains, unless there was an error.
func printLeft(w io.Writer, left []remainder, err error) error {
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range left {
		fmt.Fprintf(t, "  %s\t%s\t%s\n", l.Where, l.What, l.Until)
	}
	return t.Flush()
}
