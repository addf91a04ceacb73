package projector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/reader"
)

// A feed tells of all partitions, whoever has them. The worker that is asked
// follows its own and opens feeds at the others, each of some partitions from where
// the last one of them came to; when a partition moves, that feed ends, and another
// one is opened where it is then. What comes of a partition comes from one source
// at a time, and the next goes on where it was: so nothing is missed and nothing
// comes twice.
const (
	feedLook    = 100 * time.Millisecond // between looks at who has what
	feedBegin   = time.Second            // for all sources to say from where on they follow
	feedGrace   = 2 * time.Second        // without a word from a partition, until that is told
	feedSilence = 5 * time.Second        // without a word from a worker, until it is given up
	feedAgain   = 500 * time.Millisecond // until a worker that could not be reached is tried again
)

// mergedFeed is a feed over all workers. One goroutine has it; sources send to it.
type mergedFeed struct {
	cluster *clusterReader
	start   query.Start
	f       func(query.Changes) error

	partitions []mergedPartition
	messages   chan feedMessage
	begin      chan struct{} // closed when sources may tell more than from where on they follow
	work       sync.WaitGroup
	begun      bool
	untold     int  // partitions of which no source has said where it is
	stalled    bool // partitions were
}

// mergedPartition is a partition that is followed.
type mergedPartition struct {
	next   int64       // everything below was told; -1 if that is not known yet
	source *feedSource // nil: nobody
	told   bool        // a source said where it is
	at     query.Position
	heard  time.Time // of it, last
	again  time.Time // when to look for a source
	why    string    // there is none
}

// feedSource follows some partitions at one worker: this one if its instance is
// empty.
type feedSource struct {
	at     holder // an empty instance means this worker
	cancel context.CancelFunc
}

// feedMessage is something that a source tells, or, with an error, that it has
// ended.
type feedMessage struct {
	from    *feedSource
	changes query.Changes
	err     error
}

var errPeerSilent = fmt.Errorf("nothing came from it for %s", feedSilence)

// Follow implements [query.Projection]: it merges the workers.
func (c *clusterReader) Follow(ctx context.Context, start query.Start, f func(query.Changes) error) error {
	if err := c.local.CheckStart(start); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	m := &mergedFeed{cluster: c, start: start, f: f, partitions: make([]mergedPartition, c.local.NumPartitions()), untold: c.local.NumPartitions(), messages: make(chan feedMessage), begin: make(chan struct{})}
	defer m.work.Wait()
	defer cancel()
	return m.run(ctx)
}

func (m *mergedFeed) run(ctx context.Context) error {
	began := time.Now()
	for n := range m.partitions {
		p := &m.partitions[n]
		p.heard = began
		offset, wanted := m.start.From[int32(n)]
		switch {
		case wanted:
			p.next = offset
		case !m.start.Beginning && len(m.start.From) == 0:
			p.next = -1
		}
		p.at = query.Position{Partition: int32(n), Offset: p.next}
	}
	tick := time.NewTicker(feedLook)
	defer tick.Stop()
	changed := m.look(ctx)
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case msg := <-m.messages:
			err = m.take(ctx, msg)
		case <-changed:
			for n := range m.partitions {
				m.partitions[n].again = time.Time{}
			}
			changed = m.look(ctx)
		case <-tick.C:
			if m.cluster.roster.liveReader(m.cluster.name) != m.cluster.local {
				return fmt.Errorf("another version of the projection answers now: %w", query.ErrMoved)
			}
			if slices.ContainsFunc(m.partitions, func(p mergedPartition) bool { return p.source == nil }) {
				changed = m.look(ctx)
			}
			err = m.stall()
		}
		if err == nil && !m.begun {
			err = m.beginning(time.Since(began))
		}
		if err != nil {
			return err
		}
	}
}

// look finds sources for the partitions that have none, and lets those go that
// have their partitions no more. It returns what is closed when to look again.
func (m *mergedFeed) look(ctx context.Context) <-chan struct{} {
	state, changed := m.cluster.peers.control.Hosts()
	owners, here, self := state.Owners(m.cluster.local.Group(), m.cluster.local.Topic()), m.cluster.local.Here(), m.cluster.peers.instance
	now := time.Now()
	var fresh []*feedSource
	for n := range m.partitions {
		p := &m.partitions[n]
		here := here[int32(n)]
		instance, ok := owners[int32(n)]
		address := state.Workers[instance].Address
		if s := p.source; s != nil && (here != (s.at.instance == "") || !here && ok && (instance != s.at.instance || address != s.at.address)) {
			m.drop(s) // it may hang, and not know that it lost the partition
		}
		if p.source != nil || now.Before(p.again) {
			continue
		}
		where := holder{}
		switch {
		case here:
		case ok && instance != self:
			where = holder{instance: instance, address: address}
		default:
			p.why = "no worker has the partition"
			continue
		}
		// Those of which it is not known where they go on are asked for alone.
		i := slices.IndexFunc(fresh, func(s *feedSource) bool {
			return s.at.instance == where.instance && m.partitions[s.at.partitions[0]].next < 0 == (p.next < 0)
		})
		if i < 0 {
			i, fresh = len(fresh), append(fresh, &feedSource{at: where})
		}
		p.source = fresh[i]
		fresh[i].at.partitions = append(fresh[i].at.partitions, int32(n))
	}
	for _, s := range fresh {
		m.open(ctx, s)
	}
	return changed
}

// open starts a source.
func (m *mergedFeed) open(ctx context.Context, s *feedSource) {
	ctx, s.cancel = context.WithCancel(ctx)
	start := reader.PeerStart{ID: m.start.ID, Partitions: s.at.partitions}
	for _, n := range s.at.partitions {
		if next := m.partitions[n].next; next >= 0 {
			if start.From == nil {
				start.From = map[int32]int64{}
			}
			start.From[n] = next
		}
	}
	said := 0
	hand := func(c query.Changes) error {
		if said++; said > len(s.at.partitions) {
			select {
			case <-m.begin:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case m.messages <- feedMessage{from: s, changes: c}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.work.Go(func() {
		var err error
		if s.at.instance == "" {
			err = m.cluster.local.FollowPartitions(ctx, query.Start{ID: start.ID, From: start.From}, s.at.partitions, hand)
		} else {
			err = m.followPeer(ctx, s, start, hand)
		}
		select {
		case m.messages <- feedMessage{from: s, err: err}:
		case <-ctx.Done():
		}
	})
}

// followPeer is follow at another worker.
func (m *mergedFeed) followPeer(ctx context.Context, s *feedSource, start reader.PeerStart, hand func(query.Changes) error) error {
	text, err := reader.Parameter(start)
	if err != nil {
		return err
	}
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	var ended error // as the other worker says
	err = m.cluster.fromHolder(reading, s.at, "feed", map[string][]string{"start": {text}}, func(body io.Reader) error {
		dec := json.NewDecoder(body)
		for ended == nil {
			var line reader.PeerChanges
			silent := time.AfterFunc(feedSilence, cancel)
			err := dec.Decode(&line)
			if silent.Stop(); err != nil {
				return err
			}
			if ended = line.Ended(); ended == nil {
				ended = hand(*line.Changes)
			}
		}
		return nil
	})
	switch {
	case ended != nil:
		return ended
	case reading.Err() != nil && ctx.Err() == nil:
		return errPeerSilent
	}
	return err
}

// drop lets a source go.
func (m *mergedFeed) drop(s *feedSource) {
	s.cancel()
	for n := range m.partitions {
		if p := &m.partitions[n]; p.source == s {
			p.source, p.again = nil, time.Time{}
		}
	}
}

// take takes what a source tells.
func (m *mergedFeed) take(ctx context.Context, msg feedMessage) error {
	s := msg.from
	if msg.err != nil {
		return m.ended(ctx, s, msg.err)
	}
	c := msg.changes
	p := &m.partitions[c.At.Partition]
	if p.source != s {
		return nil // it was let go
	}
	if !p.told {
		m.untold--
	}
	p.heard, p.told, p.why = time.Now(), true, ""
	if n := len(c.Next); n > 0 {
		p.next = max(p.next, c.Next[n-1])
	}
	if !c.More {
		p.next, p.at = max(p.next, c.At.Offset), c.At
	}
	if !m.begun {
		return nil
	}
	if c.Quiet && m.untold > 0 {
		// The first frontier is of all partitions but those that are stalled.
		c.Quiet = !slices.ContainsFunc(m.partitions, func(p mergedPartition) bool { return !p.told && time.Since(p.heard) < feedGrace })
	}
	return m.tell(c)
}

// tell calls f. Whoever reads may be slow, and partitions are not silent for that.
func (m *mergedFeed) tell(c query.Changes) error {
	began := time.Now()
	err := m.f(c)
	if took := time.Since(began); took > feedLook {
		for n := range m.partitions {
			m.partitions[n].heard = m.partitions[n].heard.Add(took)
		}
	}
	return err
}

// ended is about a source that has ended. Another one is found for its partitions,
// unless that is for whoever follows to know.
func (m *mergedFeed) ended(ctx context.Context, s *feedSource, err error) error {
	s.cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !slices.ContainsFunc(m.partitions, func(p mergedPartition) bool { return p.source == s }) {
		return nil // it was let go
	}
	again := feedAgain
	switch {
	case errors.Is(err, query.ErrSlow), errors.Is(err, query.ErrAhead):
		return err
	case errors.Is(err, query.ErrMoved), s.at.instance == "" && errors.Is(err, query.ErrElsewhere):
		again = feedLook
	case s.at.instance == "":
		return err
	}
	for n := range m.partitions {
		if p := &m.partitions[n]; p.source == s {
			p.source, p.again = nil, time.Now().Add(again)
			if p.why = err.Error(); s.at.instance != "" {
				p.why = fmt.Sprintf("%v: %v", &s.at, err)
			}
		}
	}
	return nil
}

// beginning tells from where on each partition is followed, once all sources have
// said so; and if it was said by whoever asked, without those that do not in time.
func (m *mergedFeed) beginning(took time.Duration) error {
	for n := range m.partitions {
		p := &m.partitions[n]
		if p.told {
			continue
		}
		if took < feedBegin {
			return nil
		}
		if p.next < 0 {
			return fmt.Errorf("partition %d of %s: %s: %w", n, m.cluster.local.Topic(), p.reason(), query.ErrElsewhere)
		}
	}
	m.begun = true
	for n := range m.partitions {
		if err := m.tell(query.Changes{At: m.partitions[n].at}); err != nil {
			return err
		}
	}
	close(m.begin)
	return nil
}

// reason says why nothing comes from a partition.
func (p *mergedPartition) reason() string {
	switch {
	case p.why != "":
		return p.why
	case p.source != nil && p.source.at.instance != "":
		return fmt.Sprintf("%v does not answer", &p.source.at)
	}
	return "this worker is busy with it"
}

// stall tells of which partitions nothing comes.
func (m *mergedFeed) stall() error {
	if !m.begun {
		return nil
	}
	all := []query.Stall{}
	for n := range m.partitions {
		if p := &m.partitions[n]; time.Since(p.heard) > feedGrace {
			all = append(all, query.Stall{Partition: int32(n), Offset: p.next, Detail: p.reason()})
		}
	}
	if len(all) == 0 && !m.stalled {
		return nil
	}
	m.stalled = len(all) > 0
	return m.tell(query.Changes{Stalled: all})
}
