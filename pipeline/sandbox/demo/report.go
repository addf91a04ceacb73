package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
)

// Report is what a demo found, as it stands in build/demo.json.
type Report struct {
	EventsIn       int             `json:"events_in"`
	EventsOut      int             `json:"events_out"`
	EventsFiltered int             `json:"events_filtered"`
	DeadLetters    int             `json:"dead_letters"`
	ByType         map[string]int  `json:"by_type"` // in
	OutByType      map[string]int  `json:"out_by_type"`
	FilteredByType map[string]int  `json:"filtered_by_type"`
	Users          int             `json:"users"`
	Orders         int             `json:"orders"`
	UsersByStatus  map[string]int  `json:"users_by_status"`
	OrdersByStatus map[string]int  `json:"orders_by_status"`
	TotalCents     int64           `json:"total_amount_cents"` // of all orders
	Seconds        float64         `json:"seconds"`            // from the first event sent to the last folded
	Steps          steps           `json:"steps"`
	ExampleUser    json.RawMessage `json:"example_user,omitempty"`
	ExampleOrder   json.RawMessage `json:"example_order,omitempty"`
	Disagreements  []string        `json:"disagreements"` // none if every number agrees
}

// steps are when each was done, in seconds. Start counts from the beginning, the
// others from when sending began; they overlap.
type steps struct {
	Start   float64 `json:"start"` // everything was ready
	Inject  float64 `json:"inject"`
	Process float64 `json:"process"`
	Project float64 `json:"project"`
}

func (r *Report) disagree(format string, args ...any) {
	r.Disagreements = append(r.Disagreements, fmt.Sprintf(format, args...))
}

// check fills the report from the topics and the projector's API, and compares
// them.
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
		r.disagree("%d events were to be sent, but %d are on %s", d.count, r.EventsIn, demoEvents)
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

// checkEvents compares what came out with what went in: every event came out
// once, enriched, in the order of its aggregate, or it was filtered, or it is a
// dead letter. Events of an aggregate have to be in their order in both.
func (r *Report) checkEvents(in, out []demoEvent) {
	r.EventsIn, r.EventsOut = len(in), len(out)
	r.ByType, r.OutByType, r.FilteredByType = map[string]int{}, map[string]int{}, map[string]int{}
	waiting := map[string][]demoEvent{} // by aggregate: not seen on the output yet
	sent := map[string]bool{}
	for _, e := range in {
		r.ByType[e.Type]++
		sent[e.ID] = true
		waiting[e.Data.ID] = append(waiting[e.Data.ID], e)
	}
	var left []demoEvent // came not out
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
		if e.Type == "UserDeleted" { // the topology's filter
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
		r.disagree("%d events UserDeleted are on %s, which are to be filtered", n, demoEnriched)
	}
	if sum := r.EventsOut + r.EventsFiltered + r.DeadLetters; sum != r.EventsIn {
		r.disagree("%d events in, but %d out + %d filtered + %d dead letters = %d", r.EventsIn, r.EventsOut, r.EventsFiltered, r.DeadLetters, sum)
	}
}

// demoState is what the events of an aggregate add up to.
type demoState struct {
	status  string
	cents   int64
	version int64
}

// expectedStates folds the events, those of each aggregate in their order, in
// the plainest way there is.
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

// checkStates compares the projector's answers with what is expected. The
// example is the aggregate with the most events.
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
			r.disagree("%s %s is in the projection, but no event is about it", projection, s.ID)
		case got != *w:
			r.disagree("%s %s is %q with %d cents at version %d; its events say %q, %d, %d",
				projection, s.ID, got.status, got.cents, got.version, w.status, w.cents, w.version)
		}
		seen[s.ID] = true
		if s.Version > most {
			most, example = s.Version, raw
		}
		return nil
	})
	if n != len(want) {
		r.disagree("%d of projection %s, but events are about %d", n, projection, len(want))
	}
	return n, byStatus, example, err
}

func cents(amount float64) int64 { return int64(math.Round(amount * 100)) }

// demoEvent is what the check looks at in an event.
type demoEvent struct {
	ID       string            `json:"id"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata"`
	Data     struct {
		ID          string  `json:"id"`
		TotalAmount float64 `json:"total_amount"`
	} `json:"data"`
}

// demoSnapshot is what the check looks at in an answer of the projector.
type demoSnapshot struct {
	ID      string `json:"id"`
	Version int64  `json:"version"`
	State   struct {
		Status      string  `json:"status"`
		TotalAmount float64 `json:"total_amount"`
	} `json:"state"`
}

// readEvents decodes all committed events of a topic, partition by partition.
func (d *demo) readEvents(ctx context.Context, topic string) ([]demoEvent, error) {
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{d.registry}})
	if err != nil {
		return nil, err
	}
	var events []demoEvent
	var text []byte
	err = d.readTopic(ctx, topic, func(rec *pipeline.Record) error {
		ref, body, err := codec.Unframe(rec)
		if err != nil {
			return err
		}
		schema, err := registry.Schema(ctx, ref)
		if err != nil {
			return err
		}
		if text, err = codec.AppendJSON(text[:0], schema.Root(), body); err != nil {
			return err
		}
		var e demoEvent
		if err := json.Unmarshal(text, &e); err != nil {
			return err
		}
		events = append(events, e)
		return nil
	})
	return events, err
}

func (d *demo) countRecords(ctx context.Context, topic string) (n int, err error) {
	err = d.readTopic(ctx, topic, func(*pipeline.Record) error { n++; return nil })
	return n, err
}

// readTopic calls f with each committed record.
func (d *demo) readTopic(ctx context.Context, topic string, f func(*pipeline.Record) error) error {
	cluster, err := kafka.EnsureTopics(ctx, d.cluster(), []kafka.TopicSpec{{Name: topic}}, false)
	if err != nil {
		return err
	}
	for p := range cluster.Topics[topic].Partitions {
		_, err := kafka.ReadPartition(ctx, d.cluster(), topic, int32(p), 0, func(rec *pipeline.Record) error {
			if err := f(rec); err != nil {
				return fmt.Errorf("record %s/%d@%d: %w", topic, p, rec.Offset, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// list calls f with each aggregate of a projection.
func (d *demo) list(ctx context.Context, projection string, f func(json.RawMessage) error) error {
	cursor := ""
	for {
		var page struct {
			Items      []json.RawMessage `json:"items"`
			NextCursor string            `json:"next_cursor"`
		}
		query := url.Values{"limit": {"1000"}}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		if err := getJSON(ctx, d.child("projector").url+"/v1/projections/"+projection+"?"+query.Encode(), &page); err != nil {
			return err
		}
		for _, item := range page.Items {
			if err := f(item); err != nil {
				return err
			}
		}
		if cursor = page.NextCursor; cursor == "" {
			return nil
		}
	}
}

// maxShown is how many disagreements are printed; the report has all.
const maxShown = 20

// print writes the report for a person.
func (r *Report) print(w io.Writer) {
	fmt.Fprintf(w, "\nEvents    %s in = %s out + %s filtered + %s dead letters\n\n",
		cli.GroupDigits(int64(r.EventsIn)), cli.GroupDigits(int64(r.EventsOut)), cli.GroupDigits(int64(r.EventsFiltered)), cli.GroupDigits(int64(r.DeadLetters)))
	fmt.Fprintf(w, "  %-14s %11s %11s %11s\n", "", "in", "out", "filtered")
	for _, t := range slices.Sorted(maps.Keys(r.ByType)) {
		fmt.Fprintf(w, "  %-14s %11s %11s %11s\n", t, cli.GroupDigits(int64(r.ByType[t])), cli.GroupDigits(int64(r.OutByType[t])), cli.GroupDigits(int64(r.FilteredByType[t])))
	}
	fmt.Fprintf(w, "\nUsers     %s: %s\n", cli.GroupDigits(int64(r.Users)), counts(r.UsersByStatus))
	fmt.Fprintf(w, "Orders    %s: %s; in all %s.%02d\n", cli.GroupDigits(int64(r.Orders)), counts(r.OrdersByStatus), cli.GroupDigits(r.TotalCents/100), r.TotalCents%100)
	fmt.Fprintf(w, "\nTime      since sending began; the steps overlap\n\n")
	for _, step := range []struct {
		name    string
		seconds float64
	}{{"all sent", r.Steps.Inject}, {"all processed", r.Steps.Process}, {"all folded", r.Steps.Project}} {
		fmt.Fprintf(w, "  %-14s %9.2f s %11s events/s\n", step.name, step.seconds, cli.GroupDigits(int64(float64(r.EventsIn)/max(step.seconds, 0.001))))
	}
	fmt.Fprintf(w, "\nA user    %s\n\nAn order  %s\n\n", indented(r.ExampleUser), indented(r.ExampleOrder))
	if len(r.Disagreements) == 0 {
		fmt.Fprintln(w, "Every number agrees, event by event and state by state.")
		return
	}
	fmt.Fprintf(w, "Not every number agrees:\n\n")
	for _, s := range r.Disagreements[:min(maxShown, len(r.Disagreements))] {
		fmt.Fprintln(w, "  "+s)
	}
	if more := len(r.Disagreements) - maxShown; more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
}

func counts(m map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, cli.GroupDigits(int64(m[k]))+" "+k)
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// indented writes JSON over several lines, in the column of the report.
func indented(raw json.RawMessage) string {
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "          ", "  "); err != nil {
		return "none"
	}
	return out.String()
}
