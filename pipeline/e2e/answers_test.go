package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// feedReader follows the feed of users: at each of the addresses in turn, going on
// where it was, and each time as far as pause messages if that is not 0.
type feedReader struct {
	pause int

	mu      sync.Mutex
	told    map[string]int // by user: how often
	offsets map[int]int64  // by partition: of the last event
	kinds   map[string]int // messages
	faults  []string
	last    string
	visits  int
	bodies  map[string]string // the last of each kind
}

func newFeedReader(pause int) *feedReader {
	return &feedReader{pause: pause, told: map[string]int{}, offsets: map[int]int64{}, kinds: map[string]int{}, bodies: map[string]string{}}
}

func (r *feedReader) fault(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.faults) < 10 {
		r.faults = append(r.faults, fmt.Sprintf(format, args...))
	}
}

var errPause = errors.New("that is enough for now")

// follow follows until it is stopped. A worker that is not there is left out.
func (r *feedReader) follow(urls func() []string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			all := urls()
			err := r.visit(ctx, all[n%len(all)]+"/v1/projections/user/feed?from=beginning")
			if err != nil && ctx.Err() == nil && !errors.Is(err, errPause) && len(all) == 1 {
				r.fault("%v", err)
			}
		}
	})
	return func() { cancel(); work.Wait() }
}

func (r *feedReader) visit(ctx context.Context, at string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return err
	}
	if r.last != "" {
		req.Header.Set("Last-Event-ID", r.last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body) // it is only for the message
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	r.mu.Lock()
	r.visits++
	r.mu.Unlock()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	var event, id string
	left := r.pause
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "event":
			event = value
		case "id":
			id = value
		case "data":
			r.take(event, id, value)
			// Only where it was said how to go on is nothing told twice.
			if left--; r.pause > 0 && left <= 0 && id != "" {
				return errPause
			}
		case "":
			event, id = "", ""
		}
	}
	return fmt.Errorf("the feed ended: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}

func (r *feedReader) take(event, id, data string) {
	if event == "snapshot" {
		var s struct {
			ID        string `json:"id"`
			Partition int    `json:"partition"`
			Offset    int64  `json:"event_offset"`
		}
		if err := json.Unmarshal([]byte(data), &s); err != nil {
			r.fault("%v", err)
		}
		r.mu.Lock()
		before, ok := r.offsets[s.Partition]
		r.told[s.ID]++
		r.offsets[s.Partition] = s.Offset
		r.mu.Unlock()
		if ok && s.Offset <= before && r.pause > 0 {
			r.fault("in partition %d, offset %d comes after %d", s.Partition, s.Offset, before)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kinds[event]++
	r.bodies[event] = data
	if id != "" {
		r.last = id
	}
}

// all returns an error unless each of n users was told once.
func (r *feedReader) all(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, times := range r.told {
		if times != 1 {
			return fmt.Errorf("%s was told %d times", id, times)
		}
	}
	if len(r.told) != n {
		return fmt.Errorf("%d users were told, there are %d", len(r.told), n)
	}
	return nil
}

// createUsers sends new users, each once, until it is stopped, and returns how many.
func (b *rebuildBox) createUsers(first int) (stop func() int) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	cmd := b.command(context.WithoutCancel(ctx), "producer", "send", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	var work sync.WaitGroup
	n := first
	work.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				_ = in.Close() // it ends by that
				return
			case <-tick.C:
			}
			if _, err := io.WriteString(in, created(n)); err != nil {
				return // the exit code tells
			}
			n++
		}
	})
	return func() int {
		b.t.Helper()
		cancel()
		work.Wait()
		if err := cmd.Wait(); err != nil {
			b.t.Errorf("producer: %v\n%s", err, &errs)
		}
		return n
	}
}

// ask has the command ask a worker.
func (w *rebuildWorker) ask(args ...string) []byte {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(bin, "projector"), append(args, "--address", w.url)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("projector %s: %v\n%s", strings.Join(args, " "), err, &errs)
	}
	return out
}

// createdEvents goes through the list of events at a worker, to its end.
func createdEvents(at string, limit int) (ids []string, err error) {
	for cursor := ""; ; {
		body, _, err := fetch(fmt.Sprintf("%s/v1/events?type=UserCreated&limit=%d&cursor=%s", at, limit, url.QueryEscape(cursor)))
		if err != nil {
			return nil, err
		}
		var page struct {
			Items []struct {
				ID string `json:"id"`
			} `json:"items"`
			Next       string     `json:"next_cursor"`
			Partitions []struct{} `json:"partitions"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return nil, err
		}
		if len(page.Partitions) != 4 {
			return nil, fmt.Errorf("a page of %d partitions", len(page.Partitions))
		}
		for _, it := range page.Items {
			ids = append(ids, it.ID)
		}
		if cursor = page.Next; cursor == "" {
			return ids, nil
		}
	}
}

// TestAnyOfTwoWorkersTellsAllWhileTheOtherIsRestarted has one of two workers
// stopped, killed and started again while users are created, the feed is followed
// at the other without a break and by one who goes from worker to worker, and the
// events are listed; then it releases at one worker what is blocked at the other.
func TestAnyOfTwoWorkersTellsAllWhileTheOtherIsRestarted(t *testing.T) {
	t.Parallel() // it waits more than it works
	b := newRebuildBox(t, 4)
	b.declare(4, `, status: "data.name == 'bad' ? string(1 / (size(state.id) - size(data.id))) : 'active'"`)
	var first strings.Builder
	for i := range rebuildUsers {
		first.WriteString(created(i))
	}
	events := filepath.Join(b.dir, "events.jsonl")
	send := func(text string) {
		t.Helper()
		if err := os.WriteFile(events, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b.must("producer", "send", events)
	}
	send(first.String())
	stays, goes := b.start("stays"), b.start("goes")
	b.await("both to have partitions", func() error {
		for _, w := range []*rebuildWorker{stays, goes} {
			var has []struct {
				Offsets map[string]int64 `json:"offsets"`
			}
			body, _, err := fetch(w.url + "/internal/v1/versions")
			if err == nil {
				err = json.Unmarshal(body, &has)
			}
			if err != nil {
				return err
			}
			if len(has) != 1 || len(has[0].Offsets) != 2 {
				return fmt.Errorf("%s has %v", w.name, has)
			}
		}
		return nil
	})

	var mu sync.Mutex
	both := []string{stays.url, goes.url}
	single, resumed := newFeedReader(0), newFeedReader(170)
	stopSingle := single.follow(func() []string { return []string{stays.url} })
	stopResumed := resumed.follow(func() []string {
		mu.Lock()
		defer mu.Unlock()
		return both
	})
	restart := func() {
		t.Helper()
		goes = b.start("goes")
		mu.Lock()
		defer mu.Unlock()
		both = []string{stays.url, goes.url}
	}
	stopLoad := b.createUsers(rebuildUsers)
	lists := 0
	var failed []string
	listing, stopListing := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for listing.Err() == nil {
			// A worker that takes longer than five seconds to come back is said to be missing.
			if _, _, err := fetch(stays.url + "/v1/events?type=UserCreated&limit=100"); err != nil && !strings.Contains(err.Error(), "no worker that is ready has") {
				failed = append(failed, err.Error())
			}
			lists++
		}
	})
	for range 2 {
		goes.stop()
		restart()
		if err := goes.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-goes.done; err == nil {
			t.Error("it ended as if it had not been killed")
		}
		restart()
	}
	stopListing()
	work.Wait()
	n := stopLoad()
	for name, r := range map[string]*feedReader{"without a break": single, "from worker to worker": resumed} {
		b.await("all users in the feed "+name, func() error { return r.all(n) })
	}
	stopSingle()
	stopResumed()
	for name, r := range map[string]*feedReader{"without a break": single, "from worker to worker": resumed} {
		if err := r.all(n); err != nil || len(r.faults) > 0 {
			t.Errorf("%s: %v\n%s", name, err, strings.Join(r.faults, "\n"))
		}
		t.Logf("%s: %d users in %d visits, messages %v", name, len(r.told), r.visits, r.kinds)
	}
	if single.visits != 1 || single.kinds["end"] > 0 {
		t.Errorf("the feed that nobody left was followed %d times: %s", single.visits, single.bodies["end"])
	}
	if len(failed) > 0 {
		t.Errorf("of %d lists of events some failed: %v", lists, failed)
	}
	t.Logf("%d lists of events while it was restarted", lists)

	// The same events, in the same order, by pages of any size at any worker.
	want, err := createdEvents(stays.url, 1000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := createdEvents(goes.url, 333)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) || len(want) != n {
		t.Errorf("%d events at one worker, %d at the other, there are %d", len(want), len(got), n)
	}

	// Some of each worker are blocked.
	var bad strings.Builder
	var ids []string
	for i := range 8 {
		ids = append(ids, rebuildUser(i))
		fmt.Fprintf(&bad, `{"type":"UserUpdated","data":{"id":%q,"name":"bad"}}`+"\n", rebuildUser(i))
		fmt.Fprintf(&bad, `{"type":"UserUpdated","data":{"id":%q,"name":"good"}}`+"\n", rebuildUser(i))
	}
	send(bad.String())
	type list struct {
		Items []struct {
			ID        string `json:"id"`
			Partition int    `json:"partition"`
			Queued    int    `json:"queued"`
		} `json:"items"`
	}
	look := func(w *rebuildWorker) (all list) {
		t.Helper()
		if err := json.Unmarshal(w.ask("blocked", "user", "--json"), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, w := range []*rebuildWorker{stays, goes} {
		b.await("all of them to be blocked", func() error {
			var have []string
			partitions := map[int]bool{}
			for _, it := range look(w).Items {
				if it.Queued == 1 {
					have = append(have, it.ID)
				}
				partitions[it.Partition] = true
			}
			if slices.Sort(have); !slices.Equal(have, ids) || len(partitions) < 3 {
				return fmt.Errorf("%s lists %v of %d partitions", w.name, have, len(partitions))
			}
			return nil
		})
	}
	post := func(id, query string) (int, string) {
		t.Helper()
		resp, err := http.Post(stays.url+"/v1/blocked/user/"+id+"/release"+query, "", nil) //nolint:noctx // bounded by the test's own timeout
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for i, id := range ids {
		if i == len(ids)/2 {
			// Whoever has it may just be on its way back.
			goes.stop()
			restarted := make(chan struct{})
			go func() { restart(); close(restarted) }()
			defer func() { <-restarted }()
		}
		if code, body := post(id, ""); code != http.StatusOK || !strings.Contains(body, `"events":2,"blocked":{`) {
			t.Errorf("%s, without skip: %d %s", id, code, body)
		}
		if code, body := post(id, "?skip=true"); code != http.StatusOK || !strings.Contains(body, `"events":2}`) {
			t.Errorf("%s: %d %s", id, code, body)
		}
		if code, body := post(id, ""); code != http.StatusConflict || !strings.Contains(body, "is not blocked") {
			t.Errorf("%s, again: %d %s", id, code, body)
		}
	}
	if code, body := post("nobody", ""); code != http.StatusNotFound || !strings.Contains(body, "projector blocked user") {
		t.Errorf("nobody: %d %s", code, body)
	}
	if left := look(stays).Items; len(left) > 0 {
		t.Errorf("still blocked: %v", left)
	}
	for _, id := range ids {
		body, _, err := fetch(stays.url + "/v1/projections/user/" + id)
		if err != nil || !bytes.Contains(body, []byte(`"name":"good"`)) {
			t.Errorf("%s: %v %s", id, err, body)
		}
	}
	goes.stop()
	stays.stop()
}
