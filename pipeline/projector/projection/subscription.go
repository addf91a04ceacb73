package projection

import (
	"cmp"
	"slices"
	"sync"

	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
)

// feeds are the subscriptions to changes. A change is sent when the transaction with its
// snapshot has committed, by the session, which waits for no subscriber: a subscription
// has a queue, and is dropped when its queue is full.
type feeds struct {
	mu      sync.Mutex // taken after unit.mu; guards the fields below
	of      map[*lane][]*Subscription
	waiting chan struct{} // closed at the next change; nil if nobody waits
}

// feedQueue bounds the aggregates in the queue of a subscription.
const feedQueue = 1 << 14

// Subscription is a queue of committed changes of some partitions. Its methods may be
// called from one goroutine.
type Subscription struct {
	set    *Set
	id     string // of one aggregate; "" means all
	ready  chan struct{}
	joined []*lane

	mu     sync.Mutex // taken after feeds.mu; guards the fields below
	queue  []Committed
	queued int // aggregates in queue
	slow   bool
}

// Committed are the aggregates of a partition that changed in one transaction, in order
// of Next. At is the position after it.
type Committed struct {
	Aggregates []ChangedAggregate
	At         query.Position
}

// ChangedAggregate is an aggregate that changed, and the offset from which a feed
// continues after it. OutOfOrder reports that it changed otherwise than by the event at
// its offset: by an event that had waited, or because it was blocked or released.
type ChangedAggregate struct {
	query.Aggregate
	Next       int64
	OutOfOrder bool
}

// Changed returns a channel that is closed at the next change of any partition.
func (s *Set) Changed() <-chan struct{} {
	f := &s.feeds
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting == nil {
		f.waiting = make(chan struct{})
	}
	return f.waiting
}

// wakeWaiting closes the channel of Changed.
func (f *feeds) wakeWaiting() {
	f.mu.Lock()
	if f.waiting != nil {
		close(f.waiting)
		f.waiting = nil
	}
	f.mu.Unlock()
}

// send adds the due aggregates of a lane, which are committed now, to the subscriptions.
// next is the offset that the transaction reached. The unit's lock is held.
func (f *feeds) send(l *lane, next int64) {
	if l.states == nil {
		return // nothing was sent, and the partition was revoked
	}
	l.states.Settle()
	if next < l.next || l.states.Due() == 0 {
		// After an aborted batch, the states are ahead of what is committed. They stay
		// due until the commits have reached them.
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if subscriptions := f.of[l]; len(subscriptions) > 0 {
		all := l.committed(query.Position{Partition: l.source.Partition, Offset: next})
		for _, s := range subscriptions {
			s.add(all)
		}
	}
	if unsent := l.outOfOrder.Unsent(); len(unsent) > 0 {
		l.states.EachDue(func(id []byte, _ *states.Aggregate) { delete(unsent, string(id)) })
	}
}

// committed returns the aggregates that are due.
func (l *lane) committed(at query.Position) Committed {
	out := Committed{At: at}
	l.states.EachDue(func(id []byte, a *states.Aggregate) {
		if a.Version == 0 {
			return // it is deleted, or was blocked before an event was applied
		}
		name := string(id)
		one := ChangedAggregate{Aggregate: l.describe(name, &a.Aggregate, at), Next: a.Offset + 1}
		one.State = slices.Clone(one.State)
		if !a.Deleted && l.own.blocked[name] != nil {
			one.Status = fold.Blocked // the store may not have that yet
		}
		if next, ok := l.outOfOrder.Unsent()[name]; ok {
			one.Next, one.OutOfOrder = next, true
		}
		out.Aggregates = append(out.Aggregates, one)
	})
	slices.SortFunc(out.Aggregates, func(a, b ChangedAggregate) int { return cmp.Compare(a.Next, b.Next) })
	return out
}

// add adds changes to the queue.
func (s *Subscription) add(c Committed) {
	if s.id != "" {
		i := slices.IndexFunc(c.Aggregates, func(a ChangedAggregate) bool { return a.ID == s.id })
		if i < 0 {
			return
		}
		c.Aggregates = c.Aggregates[i : i+1]
	}
	if len(c.Aggregates) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queued > 0 && s.queued+len(c.Aggregates) > feedQueue {
		s.slow, s.queue = true, nil
	}
	if !s.slow {
		s.queue = append(s.queue, c)
		s.queued += len(c.Aggregates)
	}
	select {
	case s.ready <- struct{}{}:
	default: // it is ready already
	}
}

// Subscribe returns a subscription to the changes of one aggregate, or, if id is empty,
// of all. It must be closed.
func (s *Set) Subscribe(id string) *Subscription {
	return &Subscription{set: s, id: id, ready: make(chan struct{}, 1)}
}

// Join adds a partition to the subscription. Everything that was folded is in the store
// before: changes below next can be read from a View, and all later ones are queued.
// indexed reports that the history is not catching up with the states. Join fails with
// [query.ErrMoved] if the partition was revoked.
func (s *Subscription) Join(p *Partition) (next int64, indexed bool, err error) {
	u := p.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return 0, false, query.ErrMoved
	}
	if u.events > 0 {
		if err := u.save(s.set); err != nil {
			return 0, false, err
		}
	}
	f := &s.set.feeds
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		f.of = map[*lane][]*Subscription{}
	}
	f.of[p.lane] = append(f.of[p.lane], s)
	s.joined = append(s.joined, p.lane)
	return p.lane.next, p.lane.index != nil && p.lane.shadow == nil, nil
}

// Close leaves all partitions.
func (s *Subscription) Close() {
	f := &s.set.feeds
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range s.joined {
		f.of[l] = slices.DeleteFunc(f.of[l], func(o *Subscription) bool { return o == s })
		if len(f.of[l]) == 0 {
			delete(f.of, l)
		}
	}
}

// Ready returns a channel that gets a value when the queue has changes.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }

// Take empties the queue. slow reports that changes were dropped because the queue was
// full: the subscription is of no more use.
func (s *Subscription) Take() (all []Committed, slow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, s.queue, s.queued = s.queue, nil, 0
	return all, s.slow
}

// Frontier returns the offset below which no change of a joined partition is
// outstanding. ok is false if the queue has changes. Transactions that changed nothing
// move it, too.
func (s *Subscription) Frontier(p *Partition) (next int64, ok bool) {
	p.unit.mu.Lock()
	defer p.unit.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.lane.frontier(), len(s.queue) == 0 && !s.slow
}
