package projection

import (
	"cmp"
	"slices"

	"millrace/pipeline/fold"
	"millrace/pipeline/projector/changes"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
)

// Subscription is a queue of committed changes of some partitions. Its methods may be
// called from one goroutine.
type Subscription struct {
	Queue *changes.Queue
	set   *Set
}

// Changed returns a channel that is closed at the next change of any partition.
func (s *Set) Changed() <-chan struct{} { return s.feeds.Changed() }

// send adds the due aggregates of a lane, which are committed now, to the subscriptions.
// next is the offset that the transaction reached. The unit's lock is held.
func (s *Set) send(l *lane, next int64) {
	if l.states == nil {
		return // nothing was sent, and the partition was revoked
	}
	l.states.Settle()
	if next < l.next || l.states.Due() == 0 {
		// After an aborted batch, the states are ahead of what is committed. They stay
		// due until the commits have reached them.
		return
	}
	if s.feeds.Has(l) {
		s.feeds.Send(l, l.committed(query.Position{Partition: l.source.Partition, Offset: next}))
	}
	if unsent := l.outOfOrder.Unsent(); len(unsent) > 0 {
		l.states.EachDue(func(id []byte, _ *states.Aggregate) { delete(unsent, string(id)) })
	}
}

// committed returns the aggregates that are due.
func (l *lane) committed(at query.Position) changes.Committed {
	out := changes.Committed{At: at}
	l.states.EachDue(func(id []byte, a *states.Aggregate) {
		if a.Version == 0 {
			return // it is deleted, or was blocked before an event was applied
		}
		name := string(id)
		one := changes.Aggregate{Aggregate: l.describe(name, &a.Aggregate, at), Next: a.Offset + 1}
		one.State = slices.Clone(one.State)
		if !a.Deleted && l.own.blocked[name] != nil {
			one.Status = fold.Blocked // the store may not have that yet
		}
		if next, ok := l.outOfOrder.Unsent()[name]; ok {
			one.Next, one.OutOfOrder = next, true
		}
		out.Aggregates = append(out.Aggregates, one)
	})
	slices.SortFunc(out.Aggregates, func(a, b changes.Aggregate) int { return cmp.Compare(a.Next, b.Next) })
	return out
}

// Subscribe returns a subscription to the changes of one aggregate, or, if id is empty,
// of all. It must be closed.
func (s *Set) Subscribe(id string) *Subscription { return &Subscription{changes.NewQueue(id), s} }

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
	s.set.feeds.Join(p.lane, s.Queue)
	return p.lane.next, p.lane.index != nil && p.lane.shadow == nil, nil
}

// Close leaves all partitions.
func (s *Subscription) Close() { s.set.feeds.Leave(s.Queue) }

// Frontier returns the offset below which no change of a joined partition is
// outstanding. ok is false if the queue has changes. Transactions that changed nothing
// move it, too.
func (s *Subscription) Frontier(p *Partition) (next int64, ok bool) {
	p.unit.mu.Lock()
	defer p.unit.mu.Unlock()
	return p.lane.frontier(), s.Queue.IsEmpty()
}
