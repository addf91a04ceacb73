package reader

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"millrace/pipeline/projector/changes"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
)

func TestAFeedReportsCommittedChangesAndContinues(t *testing.T) {
	w := newWorld(t)
	w.add(projectiontest.UserCreated, "a")
	w.add(projectiontest.UserCreated, "b")
	fw := w.start()
	add := fw.addConcurrently()
	fw.run()
	srv := httptest.NewServer(fw.api())
	defer srv.Close()
	at := srv.URL + "/v1/projections/user/feed"

	all := projectiontest.Follow(t, at, "")
	if m := all.Next(); m.Event != "frontier" || m.ID != "0-2" || !strings.Contains(m.Data, `"offset":2,"lag":0`) {
		t.Fatalf("the first message is %+v", m)
	}
	one := projectiontest.Follow(t, at+"?id=b", "")
	named := projectiontest.Follow(t, at+"?filter="+url.QueryEscape("state.name == 'name 3'"), "")
	// It fails for version 2, which does not match then. It ends no feed.
	risky := projectiontest.Follow(t, at+"?filter="+url.QueryEscape("10 / (version - 2) > 0"), "")
	risky.Next("frontier")
	one.Next("frontier")
	named.Next("frontier")

	add(projectiontest.UserUpdated, "a")
	add(projectiontest.UserUpdated, "b")
	fw.batch(2)
	fw.abort(fw.at) // the changes are not reported, because the transaction failed
	add(projectiontest.UserUpdated, "a")
	fw.batch(1)
	fw.commit()
	// Both states of one batch, each with the offset from which a feed continues after it.
	if m := all.Next("snapshot"); m.Aggregate(t) != "b@2" || m.ID != "0-4" {
		t.Errorf("%+v", m)
	}
	m := all.Next("snapshot")
	if m.Aggregate(t) != "a@3" || m.ID != "0-5" {
		t.Errorf("%+v", m)
	}
	all.Done()
	if m := one.Next("snapshot"); m.Aggregate(t) != "b@2" || m.ID != "0-5" {
		t.Errorf("%+v", m)
	}
	if m := risky.Next("snapshot"); m.Aggregate(t) != "a@3" {
		t.Errorf("%+v", m)
	}
	risky.Done()
	if m := named.Next("snapshot"); m.Aggregate(t) != "b@2" || m.ID != "0-4" {
		t.Errorf("%+v", m)
	}
	one.Done()
	named.Done()

	// Without a feed, c is created and a changes twice.
	add(projectiontest.UserCreated, "c")
	add(projectiontest.UserUpdated, "a")
	add(projectiontest.UserUpdated, "a")
	fw.run()
	again := projectiontest.Follow(t, at, "0-5")
	got := []string{again.Next("snapshot").Aggregate(t)}
	m = again.Next("snapshot")
	if got = append(got, m.Aggregate(t)); fmt.Sprint(got) != "[c@1 a@5]" || m.ID != "0-8" {
		t.Errorf("after a pause: %v, then continue at %s", got, m.ID)
	}
	again.Done()

	// A feed from the beginning can also be interrupted after each message.
	for n := 1; n < 3; n++ {
		first, last := snapshots(t, at+"?from=beginning", "", n)
		rest, last := snapshots(t, at, last, 3-n)
		if got := append(first, rest...); fmt.Sprint(got) != "[b@2 c@1 a@5]" || last != "0-8" {
			t.Errorf("from the beginning, interrupted after %d: %v, then continue at %s", n, got, last)
		}
	}
	start := projectiontest.Follow(t, at, "0-0")
	for range 3 {
		start.Next("snapshot")
	}
	// The partition moves to another worker.
	fw.stop()
	if m := start.Next("end"); !strings.Contains(m.Data, `"reason":"moved"`) {
		t.Errorf("%+v", m)
	}
	start.Done()
}

// snapshots reads n snapshots of a feed after the event id last. It returns their
// aggregates and the last event id.
func snapshots(t *testing.T, url, last string, n int) (aggregates []string, _ string) {
	t.Helper()
	feed := projectiontest.Follow(t, url, last)
	defer feed.Done()
	for range n {
		m := feed.Next("snapshot")
		aggregates, last = append(aggregates, m.Aggregate(t)), m.ID
	}
	return aggregates, last
}

// snapshotsUntilFrontier reads the snapshots of a feed after the event id last, until
// another message comes. It returns their aggregates and the id of that message.
func snapshotsUntilFrontier(t *testing.T, url, last string) (aggregates []string, next string) {
	t.Helper()
	feed := projectiontest.Follow(t, url, last)
	defer feed.Done()
	m := feed.Next()
	for ; m.Event == "snapshot"; m = feed.Next() {
		aggregates = append(aggregates, m.Aggregate(t))
	}
	return aggregates, m.ID
}

func TestAFeedRefusesAStartThatDoesNotExist(t *testing.T) {
	w := newWorld(t)
	w.add(projectiontest.UserCreated, "a")
	fw := w.start()
	fw.run()
	api := fw.api()
	projectiontest.Ask(t, api, "/v1/projections/user/feed", "Last-Event-ID", "0-1,7-9").Is(400, "partition 7")
	projectiontest.Ask(t, api, "/v1/projections/user/feed", "Last-Event-ID", "0-2").Is(400, "ends at 1")
	projectiontest.Ask(t, api, "/v1/projections/user/feed?from=yesterday").Is(400)
	projectiontest.Ask(t, api, "/v1/projections/user/feed", "Last-Event-ID", "x").Is(400)
	fw.stop()
}

// One event may change several overlapping windows.
func TestAFeedContinuesAfterAnEventOnlyWhenAllItsChangesAreReported(t *testing.T) {
	l := &followed{next: 5, base: 5}
	queued := changes.Committed{At: query.Position{Offset: 9}}
	for i, next := range []int64{5, 7, 7, 7, 8} {
		queued.Aggregates = append(queued.Aggregates, changes.Aggregate{Aggregate: query.Aggregate{ID: fmt.Sprint(i)}, Next: next})
	}
	var got []string
	c := l.fresh(queued)
	for i, a := range c.Aggregates {
		got = append(got, fmt.Sprint(a.ID, ":", c.Next[i]))
	}
	if fmt.Sprint(got) != "[1:6 2:6 3:7 4:8]" || l.next != 9 {
		t.Errorf("%v, then %d", got, l.next)
	}
	if c := l.fresh(queued); len(c.Aggregates) > 0 {
		t.Errorf("reported again: %v", c.Aggregates)
	}
}

// If there are too many aggregates to sort by the log, they are reported in the order of
// their ids, and a feed can continue only after the last one.
func TestWithoutAHistoryManyAggregatesAreReportedInTheOrderOfTheirIDs(t *testing.T) {
	w := newWorld(t)
	fw := w.start()
	add := fw.addConcurrently()
	for _, id := range []string{"c", "b", "a"} {
		add(projectiontest.UserCreated, id)
	}
	fw.run()
	for _, c := range []struct {
		most int
		want string
	}{{3, "[c:1 b:2 a:3]"}, {2, "[a: b: c:3]"}} {
		changes := fw.set.Subscribe("")
		l, err := fw.reader().join(0, changes)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		p := &replay{to: l, ctx: t.Context(), view: l.partition.View(), f: func(c query.Changes) error {
			for i, a := range c.Aggregates {
				next := ""
				if c.Next != nil {
					next = fmt.Sprint(c.Next[i])
				} else if i == len(c.Aggregates)-1 {
					next = fmt.Sprint(l.joined)
				}
				got = append(got, a.ID+":"+next)
			}
			return nil
		}}
		err = p.byState(c.most)
		p.flush(false)
		if err = errors.Join(err, p.failed, p.view.Close()); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("at most %d sorted: %v (%v), want %s", c.most, got, err, c.want)
		}
		changes.Close()
	}
	fw.stop()
}

func TestAFollowerThatIsTooSlowIsDropped(t *testing.T) {
	w := newWorld(t)
	fw := w.start()
	add := fw.addConcurrently()
	r := fw.reader()
	stuck, ended := make(chan struct{}), make(chan error, 1)
	joined, entered := make(chan struct{}), make(chan struct{})
	go func() {
		started, first := false, true
		ended <- r.Follow(t.Context(), query.Start{}, func(c query.Changes) error {
			if !started {
				started = true
				close(joined)
			}
			if len(c.Aggregates) > 0 && first {
				first = false
				close(entered)
				<-stuck
			}
			return nil
		})
	}()
	one := func(n int) {
		for range n {
			add(projectiontest.UserCreated, fmt.Sprint("u-", len(w.log)))
		}
		fw.batch(n)
		fw.commit()
	}
	<-joined
	one(1)
	<-entered
	for range 3 {
		one(1 << 13) // half of the queue of a subscription
	}
	close(stuck)
	if err := <-ended; !errors.Is(err, query.ErrSlow) {
		t.Errorf("the feed ended with %v", err)
	}
	fw.stop()
}

// The records of an aborted batch are read again, in other batches.
func TestAFeedReportsTheChangesOfAnAbortedBatchOnce(t *testing.T) {
	w := newWorld(t)
	fw := w.start()
	add := fw.addConcurrently()
	srv := httptest.NewServer(fw.api())
	defer srv.Close()
	all := projectiontest.Follow(t, srv.URL+"/v1/projections/user/feed", "")
	all.Next("frontier")
	for i := range 6 {
		add(projectiontest.UserCreated, fmt.Sprint("u-", i))
	}
	fw.batch(6)
	fw.abort(0)
	for range 3 {
		fw.batch(2)
		fw.commit()
	}
	add(projectiontest.UserCreated, "last")
	fw.run()
	var got []string
	for len(got) == 0 || got[len(got)-1] != "last@1" {
		got = append(got, all.Next("snapshot").Aggregate(t))
	}
	if fmt.Sprint(got) != "[u-0@1 u-1@1 u-2@1 u-3@1 u-4@1 u-5@1 last@1]" {
		t.Errorf("it reports %v", got)
	}
	all.Done()
	fw.stop()
}

// A release changes an aggregate by old events, and blocking changes it without one. A
// feed reports both, also if it is opened later.
func TestAFeedReportsBlockedAndReleasedAggregates(t *testing.T) {
	for _, history := range []bool{true, false} {
		t.Run(fmt.Sprint("history ", history), func(t *testing.T) {
			w := newCounts(t, nil)
			w.history = history
			w.counted("k", 0, 0, "a")
			w.counted("j", 0, 0, "b")
			fw := w.start()
			fw.run()
			fw.end = func() int64 { return 1000 }
			srv := httptest.NewServer(fw.api())
			defer srv.Close()
			at := srv.URL + "/v1/projections/texts/feed"
			all := projectiontest.Follow(t, at, "")
			all.Next("frontier")

			publish := func() { // what is due, in a batch with an event of another aggregate
				w.counted("other", 0, 0, fmt.Sprint(len(w.log)))
				fw.run()
			}
			w.poison("k")
			w.poison("new") // an aggregate without a state is not reported
			fw.run()
			if m := all.Next("snapshot"); m.Aggregate(t) != "k@1" || !strings.Contains(m.Data, `"status":"blocked"`) {
				t.Errorf("blocked: %+v", m)
			}
			w.counted("k", 0, 0, "c")
			publish()
			if m := all.Next("snapshot"); m.Aggregate(t) != "other@1" || m.ID != "0-6" {
				t.Errorf("%+v", m)
			}
			if _, err := fw.set.Release(t.Context(), fw.projection(), "k", true); err != nil {
				t.Fatal(err)
			}
			publish()
			released, other := all.Next("snapshot"), all.Next("snapshot")
			if released.Aggregate(t) != "k@2" || strings.Contains(released.Data, "status") || other.Aggregate(t) != "other@2" || other.ID != "0-7" {
				t.Errorf("released: %+v\n%+v", released, other)
			}
			all.Done()

			// Feeds that were interrupted before each of these changes.
			for last, want := range map[string][]string{
				"0-2": {"k@2", "other@2"},
				"0-5": {"k@2", "other@2"},
				"0-6": {"k@2", "other@2"},
				"0-7": nil,
			} {
				if got, next := snapshotsUntilFrontier(t, at, last); !equalSets(got, want) || next != "0-7" {
					t.Errorf("after %s: %v, want %v; then continue at %s", last, got, want, next)
				}
			}
			one := projectiontest.Follow(t, at+"?id=k", "0-6")
			if m := one.Next("snapshot"); m.Aggregate(t) != "k@2" {
				t.Errorf("of one: %+v", m)
			}
			one.Done()

			// The same after a restart.
			fw.stop()
			fw = w.start()
			fw.run()
			again := httptest.NewServer(fw.api())
			defer again.Close()
			later := projectiontest.Follow(t, again.URL+"/v1/projections/texts/feed", "0-6")
			if a, b := later.Next("snapshot").Aggregate(t), later.Next("snapshot").Aggregate(t); !equalSets([]string{a, b}, []string{"k@2", "other@2"}) {
				t.Errorf("after a restart: %s and %s", a, b)
			}
			later.Done()
			fw.revoke()
			fw.close()
		})
	}
}

// equalSets compares without order.
func equalSets(a, b []string) bool {
	count := map[string]int{}
	for _, s := range a {
		count[s]++
	}
	for _, s := range b {
		count[s]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// Events with numbers may come out of order: an event that had waited is before events
// that were reported already.
func TestAFeedReportsChangesByEventsThatHadWaited(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 1, 0, "a")
	w.counted("k", 3, 0, "c") // offset 1
	w.counted("j", 0, 0, "x")
	fw := w.start()
	fw.run()
	fw.end = func() int64 { return 1000 }
	srv := httptest.NewServer(fw.api())
	defer srv.Close()
	at := srv.URL + "/v1/projections/texts/feed"
	all := projectiontest.Follow(t, at, "")
	if m := all.Next("frontier"); m.ID != "0-3" {
		t.Errorf("%+v", m)
	}
	w.counted("k", 2, 0, "b") // offset 3; the offset of the state is 1 then
	w.counted("j", 0, 0, "y")
	fw.run()
	k, j := all.Next("snapshot"), all.Next("snapshot")
	if k.Aggregate(t) != "k@3" || j.Aggregate(t) != "j@2" || j.ID != "0-5" {
		t.Errorf("%+v\n%+v", k, j)
	}
	all.Done()
	for last, want := range map[string]string{"0-2": "[k@3 j@2]", "0-3": "[k@3 j@2]", "0-4": "[j@2]", "0-5": "[]"} {
		if got, _ := snapshotsUntilFrontier(t, at, last); fmt.Sprint(got) != want {
			t.Errorf("after %s: %v, want %s", last, got, want)
		}
	}
	fw.stop()
}
