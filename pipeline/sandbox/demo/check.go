package demo

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strings"
)

// check fills the report from the topics and the projector's API, and compares them.
func (d *demo) check(ctx context.Context, r *Report) error {
	in, err := d.readEvents(ctx, demoEvents)
	if err != nil {
		return err
	}
	out, err := d.readEvents(ctx, demoEnriched)
	if err != nil {
		return err
	}
	if r.DeadLetters, err = d.countRecords(ctx, demoDeadLetters); err != nil {
		return err
	}
	r.checkEvents(in, out)
	if d.events == "" && r.EventsIn != d.count {
		r.disagree("sent %d events, but %d are on %s", d.count, r.EventsIn, demoEvents)
	}
	if r.EventsIn == 0 {
		r.disagree("there are no events on %s", demoEvents)
	}
	users, orders := expectedStates(in)
	if r.Users, r.UsersByStatus, r.ExampleUser, err = d.checkStates(ctx, r, "user", users); err != nil {
		return err
	}
	r.Orders, r.OrdersByStatus, r.ExampleOrder, err = d.checkStates(ctx, r, "order", orders)
	return err
}

// checkEvents compares the output with the input: every event came out once, enriched, in
// the order of its aggregate, or it was filtered, or it is a dead letter. in and out have the
// events of each aggregate in the order of the topic.
func (r *Report) checkEvents(in, out []demoEvent) {
	r.EventsIn, r.EventsOut = len(in), len(out)
	r.ByType, r.OutByType, r.FilteredByType = map[string]int{}, map[string]int{}, map[string]int{}
	waiting := map[string][]demoEvent{} // by aggregate: events not found in the output yet
	sent := map[string]bool{}
	for _, e := range in {
		r.ByType[e.Type]++
		sent[e.ID] = true
		waiting[e.Data.ID] = append(waiting[e.Data.ID], e)
	}
	var left []demoEvent // not in the output
	for _, e := range out {
		r.OutByType[e.Type]++
		if e.Metadata["pipeline"] != "enrich" {
			r.disagree("event %s (%s) on %s is not enriched", e.ID, e.Type, demoEnriched)
		}
		queue := waiting[e.Data.ID]
		i := slices.IndexFunc(queue, func(w demoEvent) bool { return w.ID == e.ID && w.Type == e.Type })
		switch {
		case i >= 0:
			left = append(left, queue[:i]...)
			waiting[e.Data.ID] = queue[i+1:]
		case sent[e.ID]:
			r.disagree("event %s (%s) is on %s once too often, or after a later event of its aggregate", e.ID, e.Type, demoEnriched)
		default:
			r.disagree("event %s (%s) is on %s, but not on %s", e.ID, e.Type, demoEnriched, demoEvents)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(waiting)) {
		left = append(left, waiting[id]...)
	}
	var missing []demoEvent
	for _, e := range left {
		if e.Type == "UserDeleted" { // the topology filters them
			r.FilteredByType[e.Type]++
			r.EventsFiltered++
			continue
		}
		missing = append(missing, e)
	}
	if len(missing) != r.DeadLetters {
		r.disagree("%d events did not come out, but there are %d dead letters", len(missing), r.DeadLetters)
		for _, e := range missing[:min(10, len(missing))] {
			r.disagree("event %s (%s) did not come out", e.ID, e.Type)
		}
	}
	if n := r.OutByType["UserDeleted"]; n > 0 {
		r.disagree("%d events UserDeleted are on %s, but should be filtered", n, demoEnriched)
	}
	if sum := r.EventsOut + r.EventsFiltered + r.DeadLetters; sum != r.EventsIn {
		r.disagree("%d events in, but %d out + %d filtered + %d dead letters = %d", r.EventsIn, r.EventsOut, r.EventsFiltered, r.DeadLetters, sum)
	}
}

// demoState is the state that follows from the events of an aggregate.
type demoState struct {
	status  string
	cents   int64
	version int64
}

// expectedStates folds the events in a simple way. in has the events of each aggregate in
// order.
func expectedStates(in []demoEvent) (users, orders map[string]*demoState) {
	users, orders = map[string]*demoState{}, map[string]*demoState{}
	status := map[string]string{
		"UserCreated": "active", "UserDeleted": "deleted",
		"OrderCreated": "created", "OrderPaid": "paid", "OrderShipped": "shipped",
	}
	for _, e := range in {
		states := orders
		if strings.HasPrefix(e.Type, "User") {
			states = users
		}
		s := states[e.Data.ID]
		if s == nil {
			s = &demoState{}
			states[e.Data.ID] = s
		}
		if s.status == "deleted" {
			continue // a late event does not bring it back
		}
		s.version++
		if to := status[e.Type]; to != "" {
			s.status = to
		}
		if e.Type == "OrderCreated" {
			s.cents = cents(e.Data.TotalAmount)
		}
	}
	return users, orders
}

// checkStates compares the projector's answers with the expected states. The example is the
// aggregate with the most events.
func (d *demo) checkStates(ctx context.Context, r *Report, projection string, want map[string]*demoState) (n int, byStatus map[string]int, example json.RawMessage, err error) {
	byStatus = map[string]int{}
	most := int64(0)
	seen := map[string]bool{}
	err = d.list(ctx, projection, func(raw json.RawMessage) error {
		var s demoSnapshot
		if err := json.Unmarshal(raw, &s); err != nil {
			return err
		}
		n++
		byStatus[s.State.Status]++
		r.TotalCents += cents(s.State.TotalAmount)
		got := demoState{s.State.Status, cents(s.State.TotalAmount), s.Version}
		switch w := want[s.ID]; {
		case seen[s.ID]:
			r.disagree("%s %s is in the list twice", projection, s.ID)
		case w == nil:
			r.disagree("%s %s is in the projection, but has no events", projection, s.ID)
		case got != *w:
			r.disagree("%s %s is %q with %d cents at version %d; expected from its events: %q, %d, %d",
				projection, s.ID, got.status, got.cents, got.version, w.status, w.cents, w.version)
		}
		seen[s.ID] = true
		if s.Version > most {
			most, example = s.Version, raw
		}
		return nil
	})
	if n != len(want) {
		r.disagree("%d aggregates in projection %s, but the events have %d", n, projection, len(want))
	}
	return n, byStatus, example, err
}

func cents(amount float64) int64 { return int64(math.Round(amount * 100)) }

// demoEvent holds the fields of an event that the check uses.
type demoEvent struct {
	ID       string            `json:"id"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata"`
	Data     struct {
		ID          string  `json:"id"`
		TotalAmount float64 `json:"total_amount"`
	} `json:"data"`
}

// demoSnapshot holds the fields of a projector's answer that the check uses.
type demoSnapshot struct {
	ID      string `json:"id"`
	Version int64  `json:"version"`
	State   struct {
		Status      string  `json:"status"`
		TotalAmount float64 `json:"total_amount"`
	} `json:"state"`
}
