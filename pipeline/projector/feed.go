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

// A feed reports the changes of all partitions, whichever workers have them. The worker
// that serves it follows its own partitions and opens feeds at the other workers, each
// of some partitions from the offset that the last one reached. When a partition moves,
// that feed ends, and another one is opened at the new worker. At any time, one source
// reports a partition, and the next source continues at its offset: no change is missed
// or reported twice.
const (
	feedLook    = 100 * time.Millisecond // between checks of the partitions' owners
	feedBegin   = time.Second            // timeout for all sources to report their first offsets
	feedGrace   = 2 * time.Second        // silence of a partition after which it is reported as stalled
	feedSilence = 5 * time.Second        // silence of a worker after which its feed is given up
	feedRetry   = 500 * time.Millisecond // delay before a worker that failed is tried again
)

// mergedFeed is a feed of all workers. One goroutine has it; sources send to it.
type mergedFeed struct {
	cluster *clusterReader
	start   query.Start
	f       func(query.Changes) error

	partitions []mergedPartition
	messages   chan feedMessage
	begin      chan struct{} // closed when sources may report more than their first offsets
	work       sync.WaitGroup
	begun      bool
	unreported int  // number of partitions of which no source has reported an offset
	stalled    bool // the last report of stalled partitions was not empty
}

// mergedPartition is a partition of a feed.
type mergedPartition struct {
	next     int64       // changes below were reported; -1 if that is not known yet
	source   *feedSource // nil if there is none
	reported bool        // a source has reported an offset
	at       query.Position
	heard    time.Time // last message
	retry    time.Time // when to look for a source
	problem  string    // why there is no source
}

// feedSource follows some partitions at one worker.
type feedSource struct {
	at     holder // an empty instance means this worker
	cancel context.CancelFunc
}

// isLocal reports whether the source is this worker.
func (s *feedSource) isLocal() bool { return s.at.instance == "" }

// feedMessage is a message of a source. With an error, the source has ended.
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
	n := c.local.NumPartitions()
	m := &mergedFeed{cluster: c, start: start, f: f, partitions: make([]mergedPartition, n), unreported: n, messages: make(chan feedMessage), begin: make(chan struct{})}
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
	changed := m.findSources(ctx)
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case msg := <-m.messages:
			err = m.take(ctx, msg)
		case <-changed:
			for n := range m.partitions {
				m.partitions[n].retry = time.Time{}
			}
			changed = m.findSources(ctx)
		case <-tick.C:
			if m.cluster.roster.liveReader(m.cluster.name) != m.cluster.local {
				return fmt.Errorf("another version of the projection answers now: %w", query.ErrMoved)
			}
			if slices.ContainsFunc(m.partitions, func(p mergedPartition) bool { return p.source == nil }) {
				changed = m.findSources(ctx)
			}
			err = m.reportStalled()
		}
		if err == nil && !m.begun {
			err = m.tryBegin(time.Since(began))
		}
		if err != nil {
			return err
		}
	}
}

// findSources opens sources for the partitions that have none, and drops sources that
// have lost their partitions. It returns a channel that is closed when the owners
// change.
func (m *mergedFeed) findSources(ctx context.Context) <-chan struct{} {
	local, self := m.cluster.local, m.cluster.peers.instance
	state, changed := m.cluster.peers.control.Workers()
	owners, assigned := state.Owners(local.Group(), local.Topic()), local.Here()
	now := time.Now()
	var fresh []*feedSource
	for n := range m.partitions {
		p := &m.partitions[n]
		here := assigned[int32(n)]
		instance, owned := owners[int32(n)]
		address := state.Workers[instance].Address
		if s := p.source; s != nil && (here != s.isLocal() || !here && owned && (instance != s.at.instance || address != s.at.address)) {
			m.drop(s) // it may hang, and not know that it lost the partition
		}
		if p.source != nil || now.Before(p.retry) {
			continue
		}
		at := holder{}
		switch {
		case here:
		case owned && instance != self:
			at = holder{instance: instance, address: address}
		default:
			p.problem = "no worker has the partition"
			continue
		}
		fresh = m.addTo(fresh, at, int32(n))
	}
	for _, s := range fresh {
		m.open(ctx, s)
	}
	return changed
}

// addTo adds a partition to the source among fresh that is at a worker, which is added
// if it is missing. Partitions whose offset is not known yet have sources of their own.
func (m *mergedFeed) addTo(fresh []*feedSource, at holder, n int32) []*feedSource {
	p := &m.partitions[n]
	i := slices.IndexFunc(fresh, func(s *feedSource) bool {
		return s.at.instance == at.instance && m.partitions[s.at.partitions[0]].next < 0 == (p.next < 0)
	})
	if i < 0 {
		i, fresh = len(fresh), append(fresh, &feedSource{at: at})
	}
	p.source = fresh[i]
	fresh[i].at.partitions = append(fresh[i].at.partitions, n)
	return fresh
}

// open starts a source.
func (m *mergedFeed) open(ctx context.Context, s *feedSource) {
	ctx, s.cancel = context.WithCancel(ctx)
	partitions := s.at.partitions
	start := reader.PeerStart{ID: m.start.ID, Partitions: partitions}
	for _, n := range partitions {
		if next := m.partitions[n].next; next >= 0 {
			if start.From == nil {
				start.From = map[int32]int64{}
			}
			start.From[n] = next
		}
	}
	sent := 0
	send := func(c query.Changes) error {
		if sent++; sent > len(partitions) {
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
		if s.isLocal() {
			err = m.cluster.local.FollowPartitions(ctx, query.Start{ID: start.ID, From: start.From}, partitions, send)
		} else {
			err = m.followPeer(ctx, s, start, send)
		}
		select {
		case m.messages <- feedMessage{from: s, err: err}:
		case <-ctx.Done():
		}
	})
}

// followPeer follows partitions at another worker.
func (m *mergedFeed) followPeer(ctx context.Context, s *feedSource, start reader.PeerStart, send func(query.Changes) error) error {
	text, err := reader.Parameter(start)
	if err != nil {
		return err
	}
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	var ended error // reported by the other worker
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
				ended = send(*line.Changes)
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

// drop stops a source.
func (m *mergedFeed) drop(s *feedSource) {
	s.cancel()
	for n := range m.partitions {
		if p := &m.partitions[n]; p.source == s {
			p.source, p.retry = nil, time.Time{}
		}
	}
}

// take takes a message of a source.
func (m *mergedFeed) take(ctx context.Context, msg feedMessage) error {
	s := msg.from
	if msg.err != nil {
		return m.ended(ctx, s, msg.err)
	}
	c := msg.changes
	p := &m.partitions[c.At.Partition]
	if p.source != s {
		return nil // the source was dropped
	}
	if !p.reported {
		m.unreported--
	}
	p.heard, p.reported, p.problem = time.Now(), true, ""
	if n := len(c.Next); n > 0 {
		p.next = max(p.next, c.Next[n-1])
	}
	if !c.More {
		p.next, p.at = max(p.next, c.At.Offset), c.At
	}
	if !m.begun {
		return nil
	}
	if c.PositionOnly && m.unreported > 0 {
		// The first frontier covers all partitions but the stalled ones.
		c.PositionOnly = !slices.ContainsFunc(m.partitions, func(p mergedPartition) bool { return !p.reported && time.Since(p.heard) < feedGrace })
	}
	return m.report(c)
}

// report calls f, which may be slow. Partitions do not stall because of that.
func (m *mergedFeed) report(c query.Changes) error {
	began := time.Now()
	err := m.f(c)
	if took := time.Since(began); took > feedLook {
		for n := range m.partitions {
			m.partitions[n].heard = m.partitions[n].heard.Add(took)
		}
	}
	return err
}

// ended handles the end of a source. Another source is opened for its partitions, unless
// the error ends the feed.
func (m *mergedFeed) ended(ctx context.Context, s *feedSource, err error) error {
	s.cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !slices.ContainsFunc(m.partitions, func(p mergedPartition) bool { return p.source == s }) {
		return nil // the source was dropped
	}
	delay := feedRetry
	switch {
	case errors.Is(err, query.ErrSlow), errors.Is(err, query.ErrAhead):
		return err
	case errors.Is(err, query.ErrMoved), s.isLocal() && errors.Is(err, query.ErrElsewhere):
		delay = feedLook
	case s.isLocal():
		return err
	}
	problem := err.Error()
	if !s.isLocal() {
		problem = fmt.Sprintf("%v: %v", &s.at, err)
	}
	for n := range m.partitions {
		if p := &m.partitions[n]; p.source == s {
			p.source, p.retry, p.problem = nil, time.Now().Add(delay), problem
		}
	}
	return nil
}

// tryBegin reports the offset at which each partition starts, once all sources have
// reported theirs. If the client gave the offsets, it does not wait longer than
// feedBegin.
func (m *mergedFeed) tryBegin(waited time.Duration) error {
	for n := range m.partitions {
		p := &m.partitions[n]
		if p.reported {
			continue
		}
		if waited < feedBegin {
			return nil
		}
		if p.next < 0 {
			return fmt.Errorf("partition %d of %s: %s: %w", n, m.cluster.local.Topic(), p.reason(), query.ErrElsewhere)
		}
	}
	m.begun = true
	for n := range m.partitions {
		if err := m.report(query.Changes{At: m.partitions[n].at}); err != nil {
			return err
		}
	}
	close(m.begin)
	return nil
}

// reason returns why nothing comes from a partition.
func (p *mergedPartition) reason() string {
	switch {
	case p.problem != "":
		return p.problem
	case p.source != nil && !p.source.isLocal():
		return fmt.Sprintf("%v does not answer", &p.source.at)
	}
	return "this worker is busy with it"
}

// reportStalled reports the partitions from which nothing comes.
func (m *mergedFeed) reportStalled() error {
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
	return m.report(query.Changes{Stalled: all})
}
