package projector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/receipt"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// liveReader returns what answers for a projection, nil if nothing does.
func (v *versions) liveReader(name string) *projection.Reader {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.live[name]
}

// Versions of a projection run side by side: each is a fold of its own, with a
// part of the store, a snapshots topic and, from the second on, a consumer group
// of its own, so that one that is being built takes nothing from one that
// answers. Which of them answers stands on the control topic. A worker follows
// that topic: it starts the versions that appear, stops those that are retired,
// and turns questions to the one that is live.
//
// The first versions of all projections share a group, which reads the events
// once for all of them.

// retryVersions is how long after a failure to start a version it is tried again.
const retryVersions = 5 * time.Second

// versions runs the versions of a worker's projections.
type versions struct {
	*projector
	w        *worker.Worker
	kept     *store.Store
	metrics  *projection.Metrics
	loops    *kafka.Metrics
	control  *control.Follower
	keys     *keyring.Ring      // nil if nothing is encrypted
	answer   func(http.Handler) // takes what answers questions from now on
	restore  *restoring
	receipts *receipt.Reader
	epoch    int64 // of this process
	peers    *http.Transport

	ended chan *versionLoop // loops that ended
	moved chan struct{}     // partitions came or went

	mu      sync.Mutex // guards what follows
	running map[string]*versionLoop
	live    map[string]*projection.Reader
	failed  map[string]error // by group: why it does not run
}

// versionLoop is the loop of a group, and the versions that it folds.
type versionLoop struct {
	group   string
	made    string // what it was made for
	wanted  []wantedVersion
	ps      *projection.Set
	readers []*projection.Reader // as wanted
	loop    *kafka.Loop          // nil in a replica
	follow  *groupFollower       // nil if this worker is neither replica nor standby
	isLive  atomic.Bool          // one of them answers questions, and may have effects
	cancel  context.CancelFunc
	done    chan struct{}

	erasedMu sync.Mutex // guards erased
	erased   map[erasedKey]bool
	err      error // after done
}

// wantedVersion is a version that is to run here.
type wantedVersion struct {
	control.VersionRecord
	name       string
	projection *topology.Projection
}

// label is what a version is called in the store, in logs and in metrics.
func (v *wantedVersion) label() string { return versionLabel(v.name, v.Version) }

func versionLabel(name string, n int) string {
	if n == 1 {
		return name
	}
	return fmt.Sprintf("%s@%d", name, n)
}

// versionGroup returns the consumer group of a version.
func versionGroup(t *topology.Topology, name string, n int) string {
	if n == 1 {
		return t.Name + "-projector"
	}
	return fmt.Sprintf("%s-projector-%s-v%d", t.Name, name, n)
}

// versionSnapshots returns the topic of a version's snapshots.
func versionSnapshots(pr *topology.Projection, n int) string {
	if n == 1 {
		return pr.Snapshots.Name
	}
	return fmt.Sprintf("%s.v%d", pr.Snapshots.Name, n)
}

// NewVersion returns the record of a version as the topology has it.
func NewVersion(e *cli.Env, flags *cli.TopologyFlags, t *topology.Topology, pr *topology.Projection, n int) (control.VersionRecord, error) {
	d, err := control.Define(e, flags, t, pr)
	return control.VersionRecord{
		Format: control.Format, Version: n, Fold: pr.Fold.Hash(), Snapshots: versionSnapshots(pr, n), Group: versionGroup(t, pr.Name, n),
		Definition: d, Time: e.Now().UTC(), By: e.Build.Version,
	}, err
}

// begin makes sure that each projection has a version that is live: at first, the
// one that the topology has.
func (v *versions) begin(ctx context.Context) error {
	if v.replica {
		return v.await(ctx)
	}
	needed := []kafka.TopicSpec{control.Spec(v.control.Topic)}
	if v.keys != nil {
		needed = append(needed, worker.TopicSpecs(keyring.Topic(v.w.Topology))...)
	}
	if _, err := kafka.EnsureTopics(ctx, v.w.Kafka, needed, !v.w.Flags.NoCreate); err != nil {
		return err
	}
	state, err := control.Read(ctx, v.w.Kafka, v.control.Topic)
	if err != nil {
		return err
	}
	var said []control.Record
	for _, pr := range v.w.Topology.Projections {
		if _, ok := state.Live[pr.Name]; ok {
			v.compare(state, pr)
			continue
		}
		n := 1
		if have := state.Numbers(pr.Name); len(have) > 0 {
			n = have[0]
		} else {
			record, err := NewVersion(v.env, v.worker.Topology, v.w.Topology, pr, n)
			if err != nil {
				return &cli.ExitError{Code: cli.ExitUsage, Err: err}
			}
			said = append(said, control.Record{Key: control.VersionKey(pr.Name, n), Value: record})
		}
		said = append(said, control.Record{Key: control.LiveKey(pr.Name), Value: control.LiveRecord{Format: control.Format, Version: n, Time: v.env.Now().UTC(), By: v.env.Build.Version}})
	}
	if len(said) == 0 {
		return nil
	}
	return control.Write(ctx, v.w.Kafka, v.control.Topic, v.env.Now(), said...)
}

// compare says if the topology has a projection otherwise than its live version.
func (v *versions) compare(state *control.State, pr *topology.Projection) {
	live := state.Live[pr.Name].Version
	for _, n := range slices.Backward(state.Numbers(pr.Name)) {
		if state.Versions[pr.Name][n].Fold == pr.Fold.Hash() {
			if n != live {
				v.w.Log.Info("the topology has a version of the projection that is not the live one", "projection", pr.Name, "version", n, "live", live)
			}
			return
		}
	}
	v.w.Log.Warn("the topology has the projection otherwise than any of its versions; the live one goes on. `projector rebuild` makes a new version beside it", "projection", pr.Name, "live", live)
}

// run runs the versions until the context ends, or one that is live cannot go on.
func (v *versions) run(ctx context.Context) error {
	if loops, err := v.w.BringUp(ctx, func(ctx context.Context) ([]*kafka.Loop, error) { return []*kafka.Loop{}, v.begin(ctx) }); loops == nil || err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return v.control.Run(ctx, func(err error) { v.w.Log.Warn("the control topic cannot be followed; trying again", "err", err) })
	})
	if v.keys != nil {
		g.Go(func() error { return v.keys.Run(ctx) })
	}
	g.Go(func() error { return v.announce(ctx) })
	g.Go(func() error { return v.restore.run(ctx) })
	g.Go(func() error { return v.receipts.Run(ctx) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-v.control.Tail.Loaded():
		}
		if v.keys != nil && v.keys.Loaded(ctx) != nil {
			return nil // the context has ended
		}
		return v.follow(ctx)
	})
	return g.Wait()
}

// follow keeps what runs as the control topic has it.
func (v *versions) follow(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, v.stopAll()) }()
	for {
		state, changed := v.control.Now()
		again, err := v.reconcile(ctx, state)
		if err != nil {
			return err
		}
		timer := time.NewTimer(retryVersions)
		retry := timer.C
		if !again {
			retry = nil
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-retry:
		case l := <-v.ended:
			if err := v.lost(l); err != nil {
				timer.Stop()
				return err
			}
		}
		timer.Stop()
	}
}

// reconcile starts and stops versions, and says who answers. again asks for
// another call after a while.
func (v *versions) reconcile(ctx context.Context, state *control.State) (again bool, err error) {
	wanted, err := v.wanted(state)
	if err != nil {
		return false, err
	}
	v.mu.Lock()
	running := maps.Clone(v.running)
	v.mu.Unlock()
	for group, l := range running {
		if made(wanted[group]) != l.made {
			if err := v.stop(l); err != nil {
				return false, err
			}
			delete(running, group)
		}
	}
	if err := v.dropRetired(state); err != nil {
		return false, err
	}
	for _, group := range slices.Sorted(maps.Keys(wanted)) {
		if running[group] != nil {
			running[group].forget(state)
			if err := running[group].erase(ctx); err != nil {
				return false, err
			}
			continue
		}
		isLive := slices.ContainsFunc(wanted[group], func(w wantedVersion) bool { return state.Live[w.name].Version == w.Version })
		l, err := v.start(ctx, group, wanted[group], state, isLive)
		v.mu.Lock()
		v.failed[group] = err
		if err == nil {
			delete(v.failed, group)
			v.running[group] = l
		}
		v.mu.Unlock()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return false, nil
		case isLive && final(err):
			return false, err
		default:
			again = true
			if isLive {
				v.w.NotReady(err.Error())
			}
			v.w.Log.Warn("a version cannot be started; trying again", "group", group, "err", err, "wait", retryVersions)
		}
	}
	v.turn(state)
	return again, nil
}

// final reports whether trying again does not mend an error.
func final(err error) bool {
	var exit *cli.ExitError
	return pipeline.ClassOf(err) != pipeline.ClassAbort || errors.As(err, &exit) || errors.Is(err, codec.ErrIncompatible)
}

// wanted returns what is to run, by group.
func (v *versions) wanted(state *control.State) (map[string][]wantedVersion, error) {
	out := map[string][]wantedVersion{}
	for _, pr := range v.w.Topology.Projections {
		for _, n := range state.Numbers(pr.Name) {
			w := wantedVersion{VersionRecord: state.Versions[pr.Name][n], name: pr.Name, projection: pr}
			group := w.Group
			if w.Fold != pr.Fold.Hash() {
				compiled, same, err := w.Definition.Compile(v.w.Topology.Topic(pr.From.Name))
				if err == nil && compiled.Fold.Hash() != w.Fold {
					err = fmt.Errorf("it is fold %s by now, and was %s: another release of the program made it", compiled.Fold.Hash(), w.Fold)
				}
				if err != nil {
					if state.Live[pr.Name].Version == n {
						return nil, pipeline.Fatal("version %d of projection %s, which is live, cannot be made any more: %w", n, pr.Name, err)
					}
					v.w.Log.Error("a version cannot be made any more", "projection", pr.Name, "version", n, "err", err)
					continue
				}
				w.projection = compiled
				if !same {
					// Its events are read by other schemas than those of its
					// group: it has to be alone.
					group = fmt.Sprintf("%s-%s-v%d", w.Group, pr.Name, n)
				}
			}
			out[group] = append(out[group], w)
		}
	}
	return out, nil
}

// made says what a loop is made for, to be compared.
func made(wanted []wantedVersion) string {
	var b strings.Builder
	for _, w := range wanted {
		fmt.Fprintf(&b, "%s %d %s %s\n", w.name, w.Version, w.Fold, w.Snapshots)
	}
	return b.String()
}

// start brings up the loop of a group.
func (v *versions) start(ctx context.Context, group string, wanted []wantedVersion, state *control.State, isLive bool) (*versionLoop, error) {
	l := &versionLoop{group: group, made: made(wanted), wanted: wanted, done: make(chan struct{}), erased: map[erasedKey]bool{}}
	l.isLive.Store(isLive)
	if err := v.projections(ctx, l); err != nil {
		return nil, err
	}
	if err := v.followBeside(l); err != nil {
		return nil, err
	}
	l.forget(state)
	if !v.replica {
		if err := v.newLoop(l); err != nil {
			return nil, err
		}
	}
	l.ps.Hidden = func(key projection.Key, left bool) bool {
		if left {
			// Between sessions of one worker, what was left answers for a
			// while. With others, it might answer beside its new owner.
			return v.others()
		}
		// Whoever had the partition before may have answered from further on.
		return l.isLive.Load() && v.restore.behind(restoreTask{l.group, phaseTail, key.Topic, key.Partition})
	}
	ctx, l.cancel = context.WithCancel(ctx)
	go func() { // stop and stopAll wait for it
		defer close(l.done)
		l.err = l.run(ctx)
		l.ps.Close()
		if ctx.Err() == nil {
			select {
			case v.ended <- l:
			case <-ctx.Done():
			}
		}
	}()
	for _, w := range wanted {
		v.w.Log.Info("version runs", "projection", w.name, "version", w.Version, "fold", w.Fold, "group", group, "live", state.Live[w.name].Version == w.Version)
	}
	return l, nil
}

// run runs what reads the events, until the context ends or one of it cannot go on.
func (l *versionLoop) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if l.loop != nil {
		g.Go(func() error { return l.loop.Run(ctx) })
	}
	if l.follow != nil {
		g.Go(func() error { return l.follow.run(ctx) })
	}
	return g.Wait()
}

// newLoop makes the loop of a version's group.
func (v *versions) newLoop(l *versionLoop) (err error) {
	cfg := v.w.LoopConfig("projector", v.loops)
	cfg.Group = l.group
	for name := range l.ps.Topics {
		cfg.Topics = append(cfg.Topics, name)
	}
	snapshots := map[string]bool{}
	for _, r := range l.readers {
		snapshots[r.Projection.Snapshots] = true
		cfg.Writes = append(cfg.Writes, r.Projection.Snapshots)
		if r.Projection.Late != "" && !slices.Contains(cfg.Writes, r.Projection.Late) {
			cfg.Writes = append(cfg.Writes, r.Projection.Late)
		}
	}
	cfg.NewHandler = func(int) (pipeline.Handler, error) {
		return &versionHandler{Handler: l.ps.NewHandler(v.w.Registry), versions: v, of: l, snapshots: snapshots}, nil
	}
	l.ps.End = func(topic string, partition int32) int64 { return endIn(l.loop.Progress(), topic, partition) }
	l.loop, err = kafka.NewLoop(cfg)
	return err
}

// endIn returns where a partition ends, as far as its reader has seen.
func endIn(progress []kafka.PartitionProgress, topic string, partition int32) int64 {
	for _, at := range progress {
		if at.Topic == topic && at.Partition == partition {
			return at.End
		}
	}
	return 0
}

// projections makes sure that topics and schemas are there, and sets what the
// sessions need, and what answers questions.
func (v *versions) projections(ctx context.Context, l *versionLoop) error {
	var topics []*topology.Topic
	for _, w := range l.wanted {
		topics = append(topics, w.projection.From, snapshotsTopic(w.projection, w.Snapshots))
		if w.projection.Late != nil {
			topics = append(topics, w.projection.Late)
		}
	}
	cluster, err := v.topics(ctx, v.w, topics)
	if err != nil {
		return err
	}
	l.ps = projection.New(v.kept, v.w.Log, v.restore.from(v.w.Kafka, l.group))
	l.ps.Tail = func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) error {
		_, err := kafka.ReadPartition(ctx, v.w.Kafka, topic, partition, from, f)
		return err
	}
	l.ps.KeepHistory, l.ps.Memory = !v.noHistory, v.memory<<20
	metrics := v.metrics
	if v.replica {
		metrics = projection.PrivateMetrics()
	}
	for _, w := range l.wanted {
		pr := w.projection
		schema := pr.Fold.Snapshot()
		id, err := event.SchemaID(ctx, v.w.Registry, w.Snapshots, schema, !v.w.Flags.NoRegister && !v.replica)
		if err != nil {
			return err
		}
		events, snapshots := cluster.Topics[pr.From.Name], cluster.Topics[w.Snapshots]
		if events.Partitions != snapshots.Partitions {
			return &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("projection %s: %s has %d partitions and %s has %d; a partition of events has its snapshots in the partition of the same number",
				pr.Name, events.Name, events.Partitions, snapshots.Name, snapshots.Partitions)}
		}
		one := &projection.Projection{Fold: pr.Fold, Version: w.label(), Partitions: events.Partitions, Identity: projection.Identity(cluster.ID, events, snapshots, pr.Fold), Snapshots: snapshots.Name, SnapshotID: id, Publish: pr.Publish}
		if pr.Late != nil {
			one.Late = pr.Late.Name
		}
		metrics.Of(one)
		l.ps.Add(events, pr.From.Types, one)
		l.readers = append(l.readers, &projection.Reader{Set: l.ps, Projection: one, Registry: v.w.Registry, EventTypes: pr.From.Types, Topic: events.Name, NumPartitions: events.Partitions, Group: l.group, Upstream: receipt.NewUpstream(v.w.Topology, pr.From, v.receipts)})
		if v.keys != nil {
			if l.readers[len(l.readers)-1].Show, err = v.keys.NewShower(v.w.Topology.Encryption, append([]*codec.Schema{pr.Fold.State()}, pr.From.Types...)...); err != nil {
				return fmt.Errorf("projection %s: %w", w.label(), err)
			}
		}
	}
	return nil
}

// stop ends a loop and waits for it.
func (v *versions) stop(l *versionLoop) error {
	l.cancel()
	<-l.done
	v.mu.Lock()
	if v.running[l.group] == l {
		delete(v.running, l.group)
	}
	v.mu.Unlock()
	v.restore.gone(l.group)
	v.change()
	return l.err
}

func (v *versions) stopAll() error {
	v.mu.Lock()
	all := slices.Collect(maps.Values(v.running))
	v.mu.Unlock()
	for _, l := range all {
		l.cancel() // all at once
	}
	var faults []error
	for _, l := range all {
		faults = append(faults, v.stop(l))
	}
	return errors.Join(faults...)
}

// lost is about a loop that ended by itself, which it does with a fatal error.
func (v *versions) lost(l *versionLoop) error {
	err := v.stop(l)
	if l.isLive.Load() {
		return err
	}
	v.mu.Lock()
	v.failed[l.group] = err
	v.mu.Unlock()
	v.w.Log.Error("a version that is not live cannot go on; the others do", "group", l.group, "err", err)
	return nil
}

// dropRetired frees the disk from versions that there are no more.
func (v *versions) dropRetired(state *control.State) error {
	keep := map[string]bool{}
	for name, numbers := range state.Versions {
		for n := range numbers {
			keep[versionLabel(name, n)] = true
		}
	}
	for _, label := range v.kept.Projections() {
		name, _, _ := strings.Cut(label, "@")
		if _, ours := state.Versions[name]; ours && !keep[label] {
			v.w.Log.Info("a version was retired; freeing its part of the store", "version", label)
			if err := v.kept.Drop(label); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn turns questions to the versions that are live. Answers being given are
// finished by the version that began them.
func (v *versions) turn(state *control.State) {
	v.mu.Lock()
	live, wanted := map[string]*projection.Reader{}, map[string]*wantedVersion{}
	var loops []*kafka.Loop
	for _, l := range v.running {
		isLive := false
		for i, w := range l.wanted {
			if state.Live[w.name].Version == w.Version {
				live[w.name], wanted[w.name] = l.readers[i], &l.wanted[i]
				isLive = true
			}
		}
		if l.isLive.Store(isLive); isLive && l.loop != nil {
			loops = append(loops, l.loop)
		}
	}
	complete, changed := true, false
	var readers []query.Projection
	for _, pr := range v.w.Topology.Projections {
		r := live[pr.Name]
		if r == nil {
			complete = false
			continue
		}
		changed = changed || v.live[pr.Name] != r
		readers = append(readers, &clusterReader{r, v, wanted[pr.Name]})
	}
	if complete {
		v.live = live
	}
	v.mu.Unlock()
	if !complete || !changed {
		return
	}
	for _, pr := range v.w.Topology.Projections {
		v.w.Log.Info("questions are answered by", "projection", pr.Name, "version", state.Live[pr.Name].Version)
	}
	v.answer(v.forwarding(query.Handler(v.w.Log, readers...)))
	v.w.Loops.Store(&loops)
}

// others reports whether there are other workers that partitions may go to.
func (v *versions) others() bool {
	hosts, _ := v.control.Hosts()
	for instance, w := range hosts.Workers {
		if instance != v.w.Flags.Instance && !w.Replica {
			return !v.replica
		}
	}
	return false
}

// all returns the loops that run.
func (v *versions) all() []*versionLoop {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Collect(maps.Values(v.running))
}

// change says that partitions came or went.
func (v *versions) change() {
	select {
	case v.moved <- struct{}{}:
	default:
	}
}

// versionHandler is a foldHandler that tells what happens to it, and has no
// effects beside its snapshots unless its version is live.
type versionHandler struct {
	*projection.Handler
	versions  *versions
	of        *versionLoop
	snapshots map[string]bool
}

var _ kafka.Assigner = (*versionHandler)(nil)

// Assign implements [kafka.Assigner].
func (h *versionHandler) Assign(ctx context.Context, ps []kafka.Partition) ([]int64, error) {
	if h.of.follow != nil {
		if err := h.of.follow.yield(ctx, ps); err != nil {
			return nil, err
		}
	}
	from, err := h.Handler.Assign(ctx, ps)
	if err == nil {
		err = h.of.erase(ctx)
		for i, p := range ps {
			h.versions.restore.tail(h.of.group, h.of.loop, p, from[i])
		}
		h.versions.change()
	}
	return from, err
}

// Revoke implements [kafka.Assigner].
func (h *versionHandler) Revoke(ps []kafka.Partition) {
	h.Handler.Revoke(ps)
	for _, p := range ps {
		h.versions.restore.revoked(h.of.group, p.Topic, p.Partition)
	}
	if h.of.follow != nil {
		h.of.follow.takeBack(ps)
	}
	h.versions.change()
}

// Handle implements [pipeline.Handler].
func (h *versionHandler) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	return h.Handler.Handle(ctx, in, h.muted(out))
}

// Flush implements [pipeline.Handler].
func (h *versionHandler) Flush(ctx context.Context, out pipeline.Emitter) error {
	return h.Handler.Flush(ctx, h.muted(out))
}

// muted keeps a version that is not live from saying anything to others: the live
// one says it already.
func (h *versionHandler) muted(out pipeline.Emitter) pipeline.Emitter {
	if h.of.isLive.Load() {
		return out
	}
	return mutedEmitter{out, h.snapshots}
}

type mutedEmitter struct {
	pipeline.Emitter
	but map[string]bool // topics
}

// Emit implements [pipeline.Emitter].
func (m mutedEmitter) Emit(r *pipeline.Record) {
	if m.but[r.Topic] {
		m.Emitter.Emit(r)
	}
}

// newVersions returns what runs the versions of a worker. answer takes what
// answers questions.
func (p *projector) newVersions(w *worker.Worker, kept *store.Store, keys *keyring.Ring, answer func(http.Handler)) *versions {
	var told []*topology.Topic
	if p.receipts > 0 {
		told = receipt.Topics(w.Topology)
	}
	known := receipt.NewReader(w.Kafka, told, p.receipts, p.env.Now, w.Log.With(slog.String("part", "receipts")), w.Metrics)
	known.Ensure = func(ctx context.Context) error {
		_, err := p.topics(ctx, w, told)
		return err
	}
	return &versions{
		projector: p, w: w, kept: kept, metrics: projection.NewMetrics(w.Metrics), loops: kafka.NewMetrics(w.Metrics),
		control: control.NewFollower(w.Kafka, control.Topic(w.Topology)), keys: keys, answer: answer, restore: newRestoring(w.Metrics, w.Log.With(slog.String("part", "restore"))), receipts: known,
		ended: make(chan *versionLoop), moved: make(chan struct{}, 1),
		epoch: time.Now().UnixNano(), peers: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, DisableCompression: true, DialContext: (&net.Dialer{Timeout: peerPatience}).DialContext},
		running: map[string]*versionLoop{}, live: map[string]*projection.Reader{}, failed: map[string]error{},
	}
}

// startPatience is how long a worker that starts waits for partitions that nobody
// has.
const startPatience = 15 * time.Second

// started returns nil when each partition of the live versions is with some
// worker, or was with none for long.
func (v *versions) started() error {
	if err := v.ready(); err != nil {
		return err
	}
	v.mu.Lock()
	live := maps.Clone(v.live)
	v.mu.Unlock()
	state, _ := v.control.Now()
	for _, name := range slices.Sorted(maps.Keys(live)) {
		r := live[name]
		for p := range int32(r.NumPartitions) {
			if _, _, ok := state.Owner(r.Group, r.Topic, p); !ok && !r.Has(projection.Key{Topic: r.Topic, Partition: p}) && time.Since(time.Unix(0, v.epoch)) < startPatience {
				return fmt.Errorf("partition %d of %s, for projection %s, is with no worker yet", p, r.Topic, name)
			}
		}
	}
	return nil
}

// ready returns nil if the versions that are live run here, and have nothing left
// to restore.
func (v *versions) ready() error {
	groups := map[string]bool{}
	var faults []error
	for _, l := range v.all() {
		if l.isLive.Load() {
			groups[l.group] = true
			faults = append(faults, l.ps.Ready())
			if v.replica {
				faults = append(faults, l.follow.ready())
			}
		}
	}
	if len(groups) == 0 {
		return errors.New("no version runs yet")
	}
	return errors.Join(append(faults, v.restore.ready(groups))...)
}
