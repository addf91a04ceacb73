package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// Erasure. What is to be forgotten stands on the control topic, as a fence: no
// event of such an aggregate is folded any more, by any version, however often the
// log is read again. What was folded of it goes from the store, with its events
// in the history; on the snapshots topic a null takes its place.
//
// The fence keeps the id itself: it could not tell the aggregate otherwise.

// fence is which aggregates a projection must not have.
type fence struct {
	ids atomic.Pointer[map[string]forgetRecord]
}

func (f *fence) has(id []byte) bool {
	if f == nil {
		return false
	}
	m := f.ids.Load()
	if m == nil || len(*m) == 0 {
		return false
	}
	_, ok := (*m)[string(id)]
	return ok
}

// forget takes over which aggregates must not be there.
func (ps *projections) forget(state *controlState) {
	for _, t := range ps.topics {
		for _, p := range t.projections {
			ids := state.forgotten[p.name()]
			p.fence.ids.Store(&ids)
		}
	}
}

// erase erases what a loop has of aggregates that are to be forgotten.
func (l *versionLoop) erase(ctx context.Context) error {
	for _, r := range l.everyReader() {
		units := r.projections.assigned()
		ids := r.p.fence.ids.Load()
		if ids == nil {
			continue
		}
		for id := range *ids {
			for _, u := range units {
				for _, lane := range u.lanes {
					if lane.projection != r.p || l.wasErased(lane, id) {
						continue
					}
					if err := r.erase(ctx, u, lane, id); err != nil {
						return fmt.Errorf("erasing an aggregate of %s, partition %d: %w", r.p.label(), u.partition, err)
					}
					l.erasedMu.Lock()
					l.erased[erasedKey{lane, id}] = true
					l.erasedMu.Unlock()
				}
			}
		}
	}
	return nil
}

// erasedKey is an aggregate that is not in a lane any more.
type erasedKey struct {
	lane *lane
	id   string
}

func (l *versionLoop) wasErased(lane *lane, id string) bool {
	l.erasedMu.Lock()
	defer l.erasedMu.Unlock()
	return l.erased[erasedKey{lane, id}]
}

// erase erases an aggregate from a lane: states, history, what waits, what is
// blocked. Its snapshot is made a null by the next transaction.
func (r *projectionReader) erase(ctx context.Context, u *unit, l *lane, id string) (err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return nil // whoever has it now does it
	}
	if err := r.save(u); err != nil {
		return err
	}
	view := l.part.View()
	defer func() { err = errors.Join(err, view.Close()) }()
	b := r.store.NewBatch()
	ids := []string{id}
	if l.fold.Window().Size > 0 {
		ids = nil
		if err := view.Scan(familyWindow, nil, nil, false, func(key, _ []byte) bool {
			if in := string(key[8:]); fold.WindowKey(in) == id {
				ids = append(ids, in)
				b.Delete(l.part, familyWindow, slices.Clone(key))
			}
			return true
		}); err != nil {
			return err
		}
	}
	tracks := []*track{l.own}
	if l.index != nil && l.index.shadow != nil {
		tracks = append(tracks, l.index.shadow)
	}
	for _, t := range tracks {
		t.unhold(slices.Clone(t.heldOf[id])...)
		if t.blocked[id] != nil {
			delete(t.blocked, id)
			t.blocks[id] = true
			if t == l.own {
				l.publishBlocked(id)
			}
		}
	}
	dec := newDecoder(r.registry, r.types, nil)
	for _, one := range ids {
		var a fold.Aggregate
		value, ok, err := view.Get(nil, familyState, []byte(one))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := fold.ReadAggregate(value, &a); err != nil {
			return damaged([]byte(one), err)
		}
		p := &past{r: r, lane: l, view: view, id: []byte(one), latest: a, decoder: dec}
		if err := p.deleteHistory(ctx, func(f store.Family, key []byte) { b.Delete(l.part, f, key) }); err != nil {
			return err
		}
		b.Delete(l.part, familyState, []byte(one))
		b.Delete(l.part, familyShadow, []byte(one))
		b.Delete(l.part, familyBelated, []byte(one))
		for _, t := range tracks {
			in, err := t.states.get([]byte(one))
			if err != nil {
				return err
			}
			in.Aggregate, in.clocks = fold.Aggregate{Source: l.source}, clocks{}
			if t == l.own {
				in.gone = true
				t.owe(one)
			}
			t.states.settle()
		}
	}
	if err := r.save(u); err != nil {
		return err
	}
	return b.Commit()
}

// deleteHistory calls f with all that the index has of the aggregate.
func (p *past) deleteHistory(ctx context.Context, f func(family store.Family, key []byte)) error {
	if p.lane.index == nil {
		return nil
	}
	folder := p.r.p.fold.NewFolder()
	var failed error
	err := p.events(1, p.latest.Version, true, func(_ int64, e indexed) bool {
		f(familyHistory, offsetKey(nil, e.offset))
		d, err := p.decoder.decode(ctx, e.record(p.lane.source), nil)
		if err == nil {
			_, err = folder.Read(d.typ, d.body, e.origin())
		}
		if failed = err; err != nil {
			return false
		}
		f(familyType, typeKey(nil, folder.Type().Name(), e.eventTime, e.offset))
		if id := folder.EventID(); len(id) > 0 {
			for layer := range p.lane.index.filter.layers {
				f(familyEvent, eventNameOf(id).key(nil, layer))
			}
		}
		return true
	})
	err2 := p.view.Scan(familyKeyframe, versionKey(nil, p.id, 0), versionKey(nil, p.id, -1), false, func(key, _ []byte) bool {
		f(familyKeyframe, slices.Clone(key))
		return true
	})
	return errors.Join(failed, err, err2)
}

// forgotten is what a worker says who is asked whether it has forgotten.
type forgotten struct {
	Versions   []string `json:"versions"`
	Partitions []int32  `json:"partitions"` // that it has, of any of them
}

// serveForgotten answers when nothing is left of an aggregate on this worker's
// disk.
func (v *versions) serveForgotten(w http.ResponseWriter, r *http.Request) {
	out := forgotten{Versions: []string{}, Partitions: []int32{}}
	name, id := r.PathValue("name"), r.PathValue("id")
	for _, l := range v.all() {
		subjects := v.keys != nil && slices.ContainsFunc(l.wanted, func(w wantedVersion) bool { return w.name == name && w.projection.Subjects })
		for _, reader := range l.everyReader() {
			if reader.p.name() != name {
				continue
			}
			if !reader.p.fence.has([]byte(id)) || subjects && !v.keys.ring.Forgotten(id) {
				http.Error(w, "this worker has not heard of it yet", http.StatusConflict)
				return
			}
			if err := l.erase(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			out.Versions = append(out.Versions, reader.p.label())
			_, units := reader.lanes()
			for _, u := range units {
				for _, lane := range u.lanes {
					if lane.projection != reader.p || kafka.PartitionOf([]byte(id), reader.partitions) != u.partition && !lane.fold.AnyPartition() {
						continue
					}
					if err := lane.part.Purge(); err != nil {
						http.Error(w, err.Error(), http.StatusInternalServerError)
						return
					}
					out.Partitions = append(out.Partitions, u.partition)
				}
			}
		}
	}
	writeJSON(w, http.StatusOK, out)
}

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

func forgetCommand(e *Env) *cobra.Command {
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
			record := forgetRecord{Format: controlFormat, Time: e.Now().UTC(), By: e.Build.Version}
			if err := o.say(ctx, w, controlSaid{forgottenKey(pr.Name, id), record}); err != nil {
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
				err = printJSON(e.Stdout, out)
			} else {
				err = out.print(e.Stdout)
			}
			if err == nil && len(out.Silent) > 0 {
				return &ExitError{Code: ExitFailure}
			}
			return err
		},
	}
	o = newOperator(e, cmd.Flags())
	return cmd
}

// await asks the workers until they have erased it.
func (x *erasure) await(ctx context.Context, state *controlState) {
	ctx, cancel := context.WithTimeout(ctx, forgetPatience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for _, instance := range sortedKeys(state.workers) {
		for {
			err := askWorker(ctx, state.workers[instance].Address, "/internal/v1/forgotten/"+url.PathEscape(x.Projection)+"/"+url.PathEscape(x.ID), func(io.Reader) error { return nil })
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
func (x *erasure) destroy(ctx context.Context, w *worker, pr *topology.Projection, at time.Time) error {
	keys := keyTopic(w.topology)
	if keys == nil || !pr.Subjects {
		return nil
	}
	cluster, err := kafka.EnsureTopics(ctx, w.kafka, topicSpecs(keys), true)
	if err != nil {
		return err
	}
	out, err := kafka.NewWriter(w.kafka)
	if err != nil {
		return err
	}
	defer out.Close()
	partition := kafka.PartitionOf([]byte(x.ID), cluster.Topics[keys.Name].Partitions)
	n, err := destroyKeys(ctx, out, keys.Name, partition, x.ID, at, func(f func(*pipeline.Record) error) error {
		_, err := kafka.ReadSettled(ctx, w.kafka, keys.Name, partition, f)
		return err
	})
	x.Key = &destroyedKey{keys.Name, n}
	return err
}

// bury writes a null in the place of each snapshot. The workers do so too, with
// their next transaction; but that may be long in coming, if no events do.
func (x *erasure) bury(ctx context.Context, w *worker, state *controlState, at time.Time) error {
	var nulls []*pipeline.Record
	for _, n := range state.numbers(x.Projection) {
		topic := state.versions[x.Projection][n].Snapshots
		nulls = append(nulls, &pipeline.Record{Topic: topic, Partition: pipeline.KeyPartition, Key: []byte(x.ID), Time: at})
		x.Tombstones = append(x.Tombstones, topic)
	}
	return kafka.WriteOnce(ctx, w.kafka, nulls...)
}

// report finds out what is left, from how topics are configured.
func (x *erasure) report(ctx context.Context, w *worker, state *controlState, pr *topology.Projection) error {
	names := slices.Clone(x.Tombstones)
	names = append(names, pr.From.Name)
	outputs := map[string]string{}
	for _, pl := range w.topology.Pipelines {
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
	keys := keyTopic(w.topology)
	if keys != nil {
		names = append(names, keys.Name)
	}
	cluster, err := kafka.Describe(ctx, w.kafka, names, nil, nil)
	if err != nil {
		return err
	}
	left := func(where, what, until string) { x.Left = append(x.Left, remainder{where, what, until}) }
	left(pr.From.Name, "its events", retained(cluster.Topics[pr.From.Name]))
	for _, topic := range x.Tombstones {
		left(topic, "its older snapshots", compacted(cluster.Topics[topic]))
	}
	for _, name := range sortedKeys(outputs) {
		if t, ok := cluster.Topics[name]; ok {
			left(name, outputs[name], retained(t))
		}
	}
	for _, other := range w.topology.Projections {
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
	left(controlTopic(w.topology), "its id, as a fence against its return", "for ever")
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
	out := printer{w: w}
	out.line("%s %s is forgotten: erased by %s, a null on %s", x.Projection, x.ID, plural(len(x.Workers), "worker"), plural(len(x.Tombstones), "snapshots topic"))
	if x.Key != nil {
		out.line("Its key is destroyed (%s on %s): what is encrypted under it cannot be read any more, wherever it is", plural(x.Key.Destroyed, "record"), x.Key.Topic)
	}
	for _, s := range x.Silent {
		out.line("  ! not asked: %s. It erases it when it is back", s)
	}
	out.line("What is left of it, and until when:")
	if out.err != nil {
		return out.err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range x.Left {
		fmt.Fprintf(t, "  %s\t%s\t%s\n", l.Where, l.What, l.Until)
	}
	return t.Flush()
}
