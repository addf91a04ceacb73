package projector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// retryStart is the delay before a version that could not be started is started again.
const retryStart = 5 * time.Second

// supervisor runs the versions that the control topic contains: it starts versions that
// appear, stops versions that are retired, and has the live ones answer. One goroutine
// calls run, which calls the other methods.
type supervisor struct {
	w         *worker.Worker
	store     *store.Store
	control   *control.Follower
	roster    *roster
	builder   *builder
	forwarder *forwarder
	peers     *peers
	announcer *announcer
	restores  *restores
	answer    func(http.Handler) // takes the handler that answers questions from then on
	ended     chan *groupLoop    // loops that ended without being stopped
	running   *prometheus.GaugeVec

	// For live versions that this release cannot compile: see upgrade.go.
	replica  bool
	define   func(pr *topology.Projection, n int) (control.VersionRecord, error)
	told     map[string]string // last log line, by its subject
	caughtUp map[string]bool   // successors that have caught up, by label
	left     map[string]bool   // groups of other releases that this worker has left
}

// run supervises until the context ends or a live version cannot continue.
func (s *supervisor) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.stopAll()) }()
	for {
		state, changed := s.control.Now()
		again, err := s.reconcile(ctx, state)
		if err != nil {
			return err
		}
		timer := time.NewTimer(max(again, time.Millisecond))
		retry := timer.C
		if again == 0 {
			retry = nil
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-retry:
		case l := <-s.ended:
			if err := s.lost(l); err != nil {
				timer.Stop()
				return err
			}
		}
		timer.Stop()
	}
}

// reconcile starts and stops versions, and has the live ones answer. If again is not 0,
// reconcile must be called again after that time: a version could not be started, or the
// successor of a live version is being built.
func (s *supervisor) reconcile(ctx context.Context, state *control.State) (again time.Duration, err error) {
	p := newPlan(s.w.Topology, state)
	s.tellUnknown(p)
	wanted := p.groups
	for group, l := range s.roster.byGroup() {
		if signature(wanted[group], p.follows(group)) != l.signature {
			if err := s.stop(l); err != nil {
				return 0, err
			}
		}
	}
	if err := s.dropRetired(state); err != nil {
		return 0, err
	}
	held := map[string]error{}
	for _, group := range slices.Sorted(maps.Keys(wanted)) {
		why, err := s.runGroup(ctx, group, wanted[group], p.follows(group), state)
		if ctx.Err() != nil {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		if len(why) > 0 {
			again = retryStart
			maps.Copy(held, why)
		}
	}
	if err := s.setHeld(p, held); err != nil {
		return 0, err
	}
	if soon := s.upgrade(ctx, state, p); soon > 0 && (again == 0 || soon < again) {
		again = soon
	}
	s.switchLive(state, p)
	return again, nil
}

// start starts the loop of a group, without the versions that cannot start.
func (s *supervisor) start(ctx context.Context, group string, wanted []wantedVersion, follows bool, state *control.State) (*groupLoop, error) {
	l, err := s.builder.build(ctx, group, wanted, follows, state)
	if err != nil {
		return nil, err
	}
	l.start(ctx, s.ended)
	s.builder.ran.add(l.wanted)
	s.roster.add(l)
	for _, v := range l.wanted {
		s.w.Log.Info("version runs", "projection", v.name, "version", v.record.Version, "fold", v.record.Hash(), "group", group, "live", v.isLive(state))
	}
	return l, nil
}

// runGroup makes sure that the loop of a group runs. It returns why versions of the group
// cannot start, by label; the others run.
func (s *supervisor) runGroup(ctx context.Context, group string, wanted []wantedVersion, follows bool, state *control.State) (held map[string]error, err error) {
	l := s.roster.byGroup()[group]
	if l != nil && len(l.held) > 0 && !time.Now().Before(l.probe) {
		if l.probe = time.Now().Add(retryStart); s.probe(ctx, l, wanted) {
			s.w.Log.Info("a version that could not start can start now; starting the group again with it", "group", group)
			if err := s.stop(l); err != nil {
				return nil, err
			}
			l = nil
		}
	}
	if l != nil {
		return l.held, l.forget(ctx, state)
	}
	if l, err = s.start(ctx, group, wanted, follows, state); err == nil {
		l.probe, held = time.Now().Add(retryStart), l.held
	} else {
		held = map[string]error{}
		for _, v := range wanted {
			held[v.label()] = err
		}
	}
	return held, nil
}

// probe reports whether a version of a group that was held can start now. It renews the
// reasons of those that cannot.
func (s *supervisor) probe(ctx context.Context, l *groupLoop, wanted []wantedVersion) bool {
	var again []wantedVersion
	for _, v := range wanted {
		if l.held[v.label()] != nil {
			again = append(again, v)
		}
	}
	some, _, _, held, _ := s.builder.startable(ctx, again)
	if ctx.Err() != nil || len(some) > 0 {
		return ctx.Err() == nil
	}
	l.held = held
	return false
}

// setHeld shows and logs which versions cannot start, by label. It fails if no projection
// runs, and trying again is useless.
func (s *supervisor) setHeld(p *plan, held map[string]error) error {
	projections, hopeless := map[string]error{}, true
	var faults []error
	for _, pr := range s.w.Topology.Projections {
		about, err := "later "+pr.Name, p.later[pr.Name]
		if err == nil {
			delete(s.told, about)
			continue
		}
		projections[pr.Name], faults = err, append(faults, fmt.Errorf("projection %s: %w", pr.Name, err))
		s.tell(about, "a projection cannot start until the control topic changes", "projection", pr.Name, "err", err)
	}
	for _, group := range slices.Sorted(maps.Keys(p.groups)) {
		for _, v := range p.groups[group] {
			err := held[v.label()]
			if err == nil {
				delete(s.told, "start "+v.label())
				hopeless = hopeless && !v.answers
				continue
			}
			if about := "start " + v.label(); s.told[about] != err.Error() {
				s.told[about] = err.Error()
				s.w.Log.Warn("a version cannot start; will retry", "version", v.label(), "group", group, "err", err, "wait", retryStart)
			}
			if v.answers {
				projections[v.name] = err
				faults = append(faults, fmt.Errorf("projection %s: %w", v.name, err))
				hopeless = hopeless && worker.IsPermanent(err)
			}
		}
	}
	for _, pr := range s.w.Topology.Projections {
		up := 1.0
		if projections[pr.Name] != nil || p.lost[pr.Name] != nil && p.lost[pr.Name].successor == nil {
			up = 0
		}
		s.running.WithLabelValues(pr.Name).Set(up)
	}
	s.roster.setHeld(projections)
	if err := errors.Join(faults...); err != nil && hopeless {
		return worker.Misconfigured(err)
	} else if err != nil && len(s.roster.all()) == 0 {
		s.w.SetNotReady(err.Error())
	}
	return nil
}

// stop stops a loop and waits for its end.
func (s *supervisor) stop(l *groupLoop) error {
	err := l.stop()
	s.roster.remove(l)
	s.restores.dropGroup(l.group)
	s.announcer.changed()
	return err
}

func (s *supervisor) stopAll() error {
	all := s.roster.all()
	for _, l := range all {
		l.cancel() // they end at the same time
	}
	var faults []error
	for _, l := range all {
		faults = append(faults, s.stop(l))
	}
	return errors.Join(faults...)
}

// lost handles a loop that ended without being stopped, which happens after a fatal
// error. If a topic was created again, or cannot be used any more, reconcile starts the loop
// again, with the versions that can start.
func (s *supervisor) lost(l *groupLoop) error {
	err := s.stop(l)
	if errors.Is(err, kafka.ErrRecreated) {
		s.w.SetNotReady(err.Error())
		s.w.Log.Warn("a topic was deleted and created again; its states are discarded, and it is folded from its start", "group", l.group, "err", err)
		return nil
	}
	if errors.Is(err, kafka.ErrUnusable) {
		s.w.SetNotReady(err.Error())
		s.w.Log.Error("a version cannot continue; starting the group again with those that can", "group", l.group, "err", err)
		return nil
	}
	if l.answers.Load() {
		return err
	}
	s.w.Log.Error("a version that is not live cannot continue; the others do", "group", l.group, "err", err)
	return nil
}

// dropRetired deletes the data of retired versions.
func (s *supervisor) dropRetired(state *control.State) error {
	keep := map[string]bool{}
	for name, numbers := range state.Versions {
		for n := range numbers {
			keep[versionLabel(name, n)] = true
		}
	}
	for _, label := range s.store.Projections() {
		name, _, _ := strings.Cut(label, "@")
		if _, ours := state.Versions[name]; ours && !keep[label] {
			s.w.Log.Info("a version was retired; deleting its part of the store", "version", label)
			if err := s.store.Drop(label); err != nil {
				return err
			}
		}
	}
	return nil
}

// switchLive has questions answered by the live versions. A version that is live no
// more finishes the answers that it has begun.
func (s *supervisor) switchLive(state *control.State, p *plan) {
	live := map[string]liveVersion{}
	var loops []*kafka.Loop
	for _, l := range s.roster.all() {
		answers, isLive := false, false
		for i, v := range l.wanted {
			isLive = isLive || v.isLive(state)
			if p.answers(&v) {
				live[v.name] = liveVersion{l.readers[i], v.record.Version, l.follows}
				answers = true
			}
		}
		l.isLive.Store(isLive)
		if l.answers.Store(answers); answers && l.loop != nil {
			loops = append(loops, l.loop)
		}
	}
	var readers []query.Projection
	for _, pr := range s.w.Topology.Projections {
		v, ok := live[pr.Name]
		if s.roster.whyHeld(pr.Name) != nil {
			continue // the others answer
		}
		if lost := p.lost[pr.Name]; !ok || lost != nil && !s.caughtUp[lost.successor.label()] {
			return // it does not run yet
		}
		readers = append(readers, &clusterReader{local: v.reader, name: pr.Name, version: v.version, follows: v.follows, peers: s.peers, roster: s.roster})
	}
	if len(readers) == 0 || !s.roster.setLive(live) {
		return
	}
	for _, pr := range s.w.Topology.Projections {
		if s.roster.whyHeld(pr.Name) != nil {
			continue
		}
		s.w.Log.Info("questions are answered by", "projection", pr.Name, "version", live[pr.Name].version)
	}
	s.answer(s.forwarder.wrap(s.roster.refuseHeld(query.Handler(s.w.Log, s.builder.options.feeds, readers...))))
	s.w.Loops.Store(&loops)
}
