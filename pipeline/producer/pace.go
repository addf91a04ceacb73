package producer

import (
	"context"
	"time"
)

// pace limits the letters per second. One goroutine owns it.
type pace struct {
	rate float64   // 0: no limit
	next time.Time // when the next letter may go
}

func newPace(rate float64) *pace { return &pace{rate: rate} }

// perSecond returns the number of letters in a second, at least one, or 0 if there
// is no limit.
func (p *pace) perSecond() int {
	if p.rate == 0 {
		return 0
	}
	return max(1, int(min(p.rate, 4096)))
}

// wait returns when the next letter may go, or with the context's error.
func (p *pace) wait(ctx context.Context) error {
	if p.rate == 0 {
		return nil
	}
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(float64(time.Second) / p.rate))
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
