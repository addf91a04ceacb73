package projector

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
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
		timer := time.NewTimer(retryStart)
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
		case l := <-s.ended:
			if err := s.lost(l); err != nil {
				timer.Stop()
				return err
			}
		}
		timer.Stop()
	}
}

// reconcile starts and stops versions, and has the live ones answer. again reports that
// a version could not be started and reconcile must be called again.
func (s *supervisor) reconcile(ctx context.Context, state *control.State) (again bool, err error) {
	wanted, err := wantedVersions(s.w.Topology, state, s.w.Log)
	if err != nil {
		return false, err
	}
	for group, l := range s.roster.byGroup() {
		if signature(wanted[group]) != l.signature {
			if err := s.stop(l); err != nil {
				return false, err
			}
		}
	}
	if err := s.dropRetired(state); err != nil {
		return false, err
	}
	running := s.roster.byGroup()
	for _, group := range slices.Sorted(maps.Keys(wanted)) {
		if l := running[group]; l != nil {
			if err := l.forget(ctx, state); err != nil {
				return false, err
			}
			continue
		}
		err := s.start(ctx, group, wanted[group], state)
		if ctx.Err() != nil {
			return false, nil
		}
		if err != nil {
			if again, err = true, s.startFailed(group, wanted[group], state, err); err != nil {
				return false, err
			}
		}
	}
	s.switchLive(state)
	return again, nil
}

// start starts the loop of a group.
func (s *supervisor) start(ctx context.Context, group string, wanted []wantedVersion, state *control.State) error {
	l, err := s.builder.build(ctx, group, wanted, state)
	if err != nil {
		return err
	}
	l.start(ctx, s.ended)
	s.roster.add(l)
	for _, v := range wanted {
		s.w.Log.Info("version runs", "projection", v.name, "version", v.record.Version, "fold", v.record.Fold, "group", group, "live", v.isLive(state))
	}
	return nil
}

// startFailed returns an error if a group that could not be started has a live version
// and trying again is useless.
func (s *supervisor) startFailed(group string, wanted []wantedVersion, state *control.State, err error) error {
	isLive := slices.ContainsFunc(wanted, func(v wantedVersion) bool { return v.isLive(state) })
	if isLive && isPermanent(err) {
		return err
	}
	if isLive {
		s.w.SetNotReady(err.Error())
	}
	s.w.Log.Warn("a version cannot be started; trying again", "group", group, "err", err, "wait", retryStart)
	return nil
}

// isPermanent reports whether an error will occur again if the same is tried again.
func isPermanent(err error) bool {
	var exit *cli.ExitError
	return pipeline.ClassOf(err) != pipeline.ClassAbort || errors.As(err, &exit) || errors.Is(err, codec.ErrIncompatible)
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
// error.
func (s *supervisor) lost(l *groupLoop) error {
	err := s.stop(l)
	if l.isLive.Load() {
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
func (s *supervisor) switchLive(state *control.State) {
	live := map[string]liveVersion{}
	var loops []*kafka.Loop
	for _, l := range s.roster.all() {
		isLive := false
		for i, v := range l.wanted {
			if v.isLive(state) {
				live[v.name] = liveVersion{l.readers[i], v.record.Version}
				isLive = true
			}
		}
		if l.isLive.Store(isLive); isLive && l.loop != nil {
			loops = append(loops, l.loop)
		}
	}
	var readers []query.Projection
	for _, pr := range s.w.Topology.Projections {
		v, ok := live[pr.Name]
		if !ok {
			return // it does not run yet
		}
		readers = append(readers, &clusterReader{local: v.reader, name: pr.Name, version: v.version, peers: s.peers, roster: s.roster})
	}
	if !s.roster.setLive(live) {
		return
	}
	for _, pr := range s.w.Topology.Projections {
		s.w.Log.Info("questions are answered by", "projection", pr.Name, "version", state.Live[pr.Name].Version)
	}
	s.answer(s.forwarder.wrap(query.Handler(s.w.Log, s.builder.options.feeds, readers...)))
	s.w.Loops.Store(&loops)
}
