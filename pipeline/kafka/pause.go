package kafka

import (
	"errors"
	"slices"
	"sync"
)

// A Pauser is an [Assigner] that does not take the records of a partition for a while. The
// partition has a lag, and the session reads the others.
type Pauser interface {
	Assigner
	// Paused reports whether a partition is paused. The session asks before it polls, so
	// the handler wakes it to resume a partition: see [Waker].
	Paused(topic string, partition int32) bool
}

// ErrPaused is in the error of a record that pauses its partition. It is no failure.
var ErrPaused = errors.New("the partition waits")

// pauses makes a client read the partitions that are not paused. mu orders its callers.
type pauses struct{ mu sync.Mutex }

func (p *pauses) apply(s *session) {
	h, ok := s.handler.(Pauser)
	cl := s.client.Load()
	if !ok || cl == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	paused := cl.PauseFetchPartitions(nil)
	pause, resume := map[string][]int32{}, map[string][]int32{}
	for topic, partitions := range s.held.except(nil) {
		for _, one := range partitions {
			is, to := slices.Contains(paused[topic], one), pause
			if is {
				to = resume
			}
			if h.Paused(topic, one) != is {
				to[topic] = append(to[topic], one)
			}
		}
	}
	cl.PauseFetchPartitions(pause)
	if len(resume) > 0 { // it looks for more to fetch
		cl.ResumeFetchPartitions(resume)
	}
}
