package shop

import (
	"bytes"
	"encoding/json"
	"flag"
	"iter"
	"math"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func lines(t testing.TB, s Story) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for e := range s.All() {
		if err := enc.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// Scripts depend on the events of a seed, so they must not change with the Go version
// or the machine. The golden file checks that.
func TestSeedGivesGoldenStory(t *testing.T) {
	const golden = "testdata/seed-1.jsonl"
	got := lines(t, Story{Seed: 1, Events: 60, Start: start})
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("seed 1 gives other events:\n%s\nwant\n%s", got, want)
	}
	if bytes.Equal(got, lines(t, Story{Seed: 2, Events: 60, Start: start})) {
		t.Error("seed 2 gives the same events as seed 1")
	}
}

func TestAppendJSONMatchesEncodingJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		story := Story{Seed: rapid.Uint64().Draw(t, "seed"), Events: 300, Start: start}
		for e := range story.All() {
			var want bytes.Buffer
			enc := json.NewEncoder(&want)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(e); err != nil {
				t.Fatal(err)
			}
			if got := string(e.AppendJSON(nil)) + "\n"; got != want.String() {
				t.Fatalf("got  %swant %s", got, want.String())
			}
		}
	})
}

func BenchmarkStory(b *testing.B) {
	b.ReportAllocs()
	var line []byte
	next, stop := iter.Pull(Story{Seed: 1, Start: start}.All())
	defer stop()
	for b.Loop() {
		e, _ := next()
		line = e.AppendJSON(line[:0])
	}
}

func TestEveryStoryIsConsistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkStory(t, Story{
			Seed:   rapid.Uint64().Draw(t, "seed"),
			Events: rapid.IntRange(1, 3000).Draw(t, "events"),
			Users:  rapid.IntRange(0, 400).Draw(t, "users"),
			Gap:    time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "gap")),
			Start:  start,
		})
	})
}

func checkStory(t *rapid.T, s Story) {
	users := map[string]string{}  // id -> status
	orders := map[string]string{} // id -> status
	buyers := map[string]string{} // order -> user
	ids, emails := map[string]bool{}, map[string]bool{}
	last, n, active := s.Start, 0, 0
	for e := range s.All() {
		n++
		if ids[e.ID] {
			t.Fatalf("duplicate event id %s", e.ID)
		}
		ids[e.ID] = true
		if e.Timestamp.Before(last) {
			t.Fatalf("event %d at %v, after one at %v", n, e.Timestamp, last)
		}
		last = e.Timestamp
		switch d := e.Data.(type) {
		case User:
			if d.Email != "" && emails[d.Email] {
				t.Fatalf("duplicate address %s", d.Email)
			}
			emails[d.Email] = true
			switch was := users[d.ID]; {
			case e.Type == "UserCreated" && was == "" && d.Email != "" && d.Name != "":
				users[d.ID] = "active"
				active++
			case e.Type == "UserUpdated" && was == "active" && d.Email+d.Name != "":
			case e.Type == "UserDeleted" && was == "active":
				users[d.ID] = "deleted"
				active--
			default:
				t.Fatalf("%s of user %s with status %q: %+v", e.Type, d.ID, was, d)
			}
		case Order:
			if e.Type != "OrderCreated" || orders[d.ID] != "" || users[d.UserID] != "active" || len(d.Items) == 0 {
				t.Fatalf("%s %+v by a user with status %q", e.Type, d, users[d.UserID])
			}
			sum := 0.0
			for _, i := range d.Items {
				if i.Quantity < 1 || i.Price <= 0 {
					t.Fatalf("item %+v", i)
				}
				sum += float64(i.Quantity) * i.Price
			}
			if want := math.Round(sum*100) / 100; d.TotalAmount != want {
				t.Fatalf("total %v, want %v", d.TotalAmount, want)
			}
			orders[d.ID], buyers[d.ID] = "created", d.UserID
		case OrderID:
			switch was := orders[d.ID]; {
			case users[buyers[d.ID]] != "active":
				t.Fatalf("%s %s of a deleted user", e.Type, d.ID)
			case e.Type == "OrderPaid" && was == "created":
				orders[d.ID] = "paid"
			case e.Type == "OrderShipped" && was == "paid":
				orders[d.ID] = "shipped"
			default:
				t.Fatalf("%s of order %s with status %q", e.Type, d.ID, was)
			}
		}
	}
	if n != s.Events {
		t.Fatalf("%d events, want %d", n, s.Events)
	}
	if s.Users > 0 && len(users) > s.Users {
		t.Fatalf("%d users, want at most %d", len(users), s.Users)
	}
	if s.Users > 0 && s.Events >= 2*s.Users && len(users) != s.Users {
		t.Fatalf("%d users after %d events, want %d", len(users), s.Events, s.Users)
	}
	if active == 0 {
		t.Fatal("no active user is left")
	}
}

func TestStoryHasAllTypes(t *testing.T) {
	counts := map[string]int{}
	for e := range (Story{Seed: 7, Events: 10_000}).All() {
		counts[e.Type]++
	}
	for _, typ := range []string{"UserCreated", "UserUpdated", "UserDeleted", "OrderCreated", "OrderPaid", "OrderShipped"} {
		if counts[typ] < 50 {
			t.Errorf("%d %s in 10,000 events, want at least 50: %v", counts[typ], typ, counts)
		}
	}
	t.Log(counts)
}

func BenchmarkTell(b *testing.B) {
	n := 0
	for range (Story{Events: b.N}).All() {
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}
