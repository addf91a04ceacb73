package projector

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/reader"
)

// roster is the loops that run on this worker, and the versions that answer.
type roster struct {
	mu    sync.Mutex // guards the fields below
	loops map[string]*groupLoop
	live  map[string]liveVersion // by name of the projection

	// pending has why a projection is not answered yet, by name, while the successor of
	// a lost version is being built.
	pending map[string]string

	held map[string]error // why projections cannot start here, by name
}

// liveVersion is the version of a projection that answers questions.
type liveVersion struct {
	reader  *reader.Reader
	version int
	follows bool // other workers own all partitions
}

func newRoster() *roster {
	return &roster{loops: map[string]*groupLoop{}, live: map[string]liveVersion{}}
}

// byGroup returns the loops by group.
func (r *roster) byGroup() map[string]*groupLoop {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.loops)
}

// all returns the loops, in no order.
func (r *roster) all() []*groupLoop { return slices.Collect(maps.Values(r.byGroup())) }

func (r *roster) add(l *groupLoop) {
	r.mu.Lock()
	r.loops[l.group] = l
	r.mu.Unlock()
}

func (r *roster) remove(l *groupLoop) {
	r.mu.Lock()
	if r.loops[l.group] == l {
		delete(r.loops, l.group)
	}
	r.mu.Unlock()
}

// setLive sets the versions that answer. It returns false if they are the same as
// before.
func (r *roster) setLive(live map[string]liveVersion) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if maps.Equal(r.live, live) {
		return false
	}
	r.live = live
	return true
}

// setPending sets why projections are not answered yet.
func (r *roster) setPending(why map[string]string) {
	r.mu.Lock()
	r.pending = why
	r.mu.Unlock()
}

// notPending returns nil if no projection is pending.
func (r *roster) notPending() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(r.pending)) {
		faults = append(faults, errors.New(r.pending[name]))
	}
	return errors.Join(faults...)
}

// liveReader returns the reader that answers for a projection, nil if there is none.
func (r *roster) liveReader(name string) *reader.Reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[name].reader
}

// liveReaders returns the readers that answer, by name of the projection.
func (r *roster) liveReaders() map[string]*reader.Reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]*reader.Reader{}
	for name, v := range r.live {
		out[name] = v.reader
	}
	return out
}

// reader returns the reader of a version, nil if it does not run here or other workers
// own its partitions.
func (r *roster) reader(name string, version int) *reader.Reader {
	for _, l := range r.all() {
		for i, v := range l.wanted {
			if !l.follows && v.name == name && v.record.Version == version {
				return l.readers[i]
			}
		}
	}
	return nil
}

// startTimeout is how long a worker that starts waits for partitions that no worker has.
const startTimeout = 15 * time.Second

// readiness reports whether the worker is ready. It has no mutable fields.
type readiness struct {
	roster   *roster
	restores *restores
	control  *control.Follower
	began    time.Time // start of the process
}

// started returns nil when each partition of the live versions is with some worker, or
// was with none for long.
func (r *readiness) started() error {
	if err := r.ready(); err != nil {
		return err
	}
	live := r.roster.liveReaders()
	state, _ := r.control.Now()
	for _, name := range slices.Sorted(maps.Keys(live)) {
		one := live[name]
		here := one.Here()
		for p := range int32(one.NumPartitions()) {
			if _, _, ok := state.Owner(one.Group(), one.Topic(), p); !ok && !here[p] && time.Since(r.began) < startTimeout {
				return fmt.Errorf("partition %d of %s, for projection %s, is with no worker yet", p, one.Topic(), name)
			}
		}
	}
	return nil
}

// joined returns nil if all sessions of the live versions are members of their groups, with
// open partitions.
func (r *readiness) joined() error {
	var faults []error
	for _, l := range r.roster.all() {
		if l.answers.Load() && l.loop != nil {
			faults = append(faults, l.loop.Ready())
		}
	}
	return errors.Join(faults...)
}

// ready returns nil if the live versions run here, and have nothing left to restore.
func (r *readiness) ready() error {
	groups := map[string]bool{}
	faults := []error{r.control.Ready(), r.roster.notPending()}
	for _, l := range r.roster.all() {
		if !l.answers.Load() {
			continue
		}
		groups[l.group] = true
		faults = append(faults, l.set.Ready())
		if l.follows {
			faults = append(faults, l.follower.ready())
		}
	}
	if len(groups) == 0 {
		return errors.Join(append(faults, errors.New("no version runs yet"))...)
	}
	return errors.Join(append(faults, r.restores.ready(groups))...)
}
