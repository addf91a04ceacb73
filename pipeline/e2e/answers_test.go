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
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// feedReader follows the feed of users. It connects to the addresses in turn, and resumes
// with the last message id. If pause is not 0, it disconnects after about pause messages.
// The fields below mu are guarded by it while the reader runs, except last, which only the
// reader's goroutine uses.
type feedReader struct {
	pause int

	mu      sync.Mutex
	seen    map[string]int    // number of snapshots by user
	offsets map[int]int64     // offset of the last event by partition
	kinds   map[string]int    // number of messages by kind
	faults  []string          // at most 10
	last    string            // last message id
	visits  int               // number of connections
	bodies  map[string]string // last message by kind
}

func newFeedReader(pause int) *feedReader {
	return &feedReader{pause: pause, seen: map[string]int{}, offsets: map[int]int64{}, kinds: map[string]int{}, bodies: map[string]string{}}
}

func (r *feedReader) fault(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.faults) < 10 {
		r.faults = append(r.faults, fmt.Sprintf(format, args...))
	}
}

var errPause = errors.New("pause")

// follow follows the feed in a goroutine until stop is called. Errors count as faults only
// if there is a single address; otherwise the next address is tried.
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

// visit connects to a feed and reads it until it ends or the reader pauses.
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
		body, _ := io.ReadAll(resp.Body) // only for the error text
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
			// Pause only after a message with an id. Resuming elsewhere would repeat messages.
			if left--; r.pause > 0 && left <= 0 && id != "" {
				return errPause
			}
		case "":
			event, id = "", ""
		}
	}
	return fmt.Errorf("the feed ended: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}

// take records a message.
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
		r.seen[s.ID]++
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

// all returns an error unless the feed delivered each of n users exactly once.
func (r *feedReader) all(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, times := range r.seen {
		if times != 1 {
			return fmt.Errorf("%s was delivered %d times", id, times)
		}
	}
	if len(r.seen) != n {
		return fmt.Errorf("%d users were delivered, want %d", len(r.seen), n)
	}
	return nil
}

// createUsers sends new users, starting with number first, until stop is called. stop
// returns the number after the last user.
func (b *rebuildBox) createUsers(first int) (stop func() int) {
	b.t.Helper()
	n := first
	end := b.sendLines(func() string {
		n++
		return created(n - 1)
	})
	return func() int {
		b.t.Helper()
		end()
		return n
	}
}

// sendLines sends lines until stop is called, about one every two milliseconds.
func (b *rebuildBox) sendLines(line func() string) (stop func()) {
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
	work.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				_ = in.Close() // the end of its input ends the producer
				return
			case <-tick.C:
			}
			if _, err := io.WriteString(in, line()); err != nil {
				return // the producer's exit code reports the error
			}
		}
	})
	return func() {
		b.t.Helper()
		cancel()
		work.Wait()
		if err := cmd.Wait(); err != nil {
			b.t.Errorf("producer: %v\n%s", err, &errs)
		}
	}
}

// query runs a projector command against this worker and returns its output.
func (w *rebuildWorker) query(args ...string) []byte {
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

// createdEvents returns the ids of all UserCreated events, page by page, from a worker.
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
			return nil, fmt.Errorf("the page covers %d partitions, want 4", len(page.Partitions))
		}
		for _, it := range page.Items {
			ids = append(ids, it.ID)
		}
		if cursor = page.Next; cursor == "" {
			return ids, nil
		}
	}
}

// TestFeedsListsAndReleasesCoverAllWorkersDuringRestarts stops, kills and restarts one of
// two workers while users are created. Meanwhile one reader follows the feed of the other
// worker without a break, another reader switches between the workers, and events are
// listed. Then it releases aggregates of both workers through one of them.
func TestFeedsListsAndReleasesCoverAllWorkersDuringRestarts(t *testing.T) {
	t.Parallel() // mostly waits
	b := newRebuildBox(t, 4)
	b.declare(4, `, status: "data.name == 'bad' ? string(1 / (size(state.id) - size(data.id))) : 'active'"`)
	var first strings.Builder
	for i := range rebuildUsers {
		first.WriteString(created(i))
	}
	b.send(first.String())
	stable, restarted := b.start("stable"), b.start("restarted")
	b.awaitPartitions(2, stable, restarted)

	var mu sync.Mutex
	both := []string{stable.url, restarted.url} // guarded by mu
	single, resumed := newFeedReader(0), newFeedReader(170)
	stopSingle := single.follow(func() []string { return []string{stable.url} })
	stopResumed := resumed.follow(func() []string {
		mu.Lock()
		defer mu.Unlock()
		return both
	})
	restart := func() {
		t.Helper()
		restarted = b.start("restarted")
		mu.Lock()
		defer mu.Unlock()
		both = []string{stable.url, restarted.url}
	}
	stopLoad := b.createUsers(rebuildUsers)
	lists := 0
	var failed []string
	listing, stopListing := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for listing.Err() == nil {
			// A worker that is down for more than five seconds is reported as missing, which
			// is a correct answer.
			if _, _, err := fetch(stable.url + "/v1/events?type=UserCreated&limit=100"); err != nil && !strings.Contains(err.Error(), "no worker that is ready has") {
				failed = append(failed, err.Error())
			}
			lists++
		}
	})
	for range 2 {
		restarted.stop()
		restart()
		if err := restarted.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-restarted.done; err == nil {
			t.Error("the killed worker exited with code 0")
		}
		restart()
	}
	stopListing()
	work.Wait()
	n := stopLoad()
	for name, r := range map[string]*feedReader{"of one worker": single, "of alternating workers": resumed} {
		b.await("all users in the feed "+name, func() error { return r.all(n) })
	}
	stopSingle()
	stopResumed()
	for name, r := range map[string]*feedReader{"of one worker": single, "of alternating workers": resumed} {
		if err := r.all(n); err != nil || len(r.faults) > 0 {
			t.Errorf("feed %s: %v\n%s", name, err, strings.Join(r.faults, "\n"))
		}
		t.Logf("feed %s: %d users, %d connections, messages %v", name, len(r.seen), r.visits, r.kinds)
	}
	if single.visits != 1 || single.kinds["end"] > 0 {
		t.Errorf("the feed of the stable worker needed %d connections: %s", single.visits, single.bodies["end"])
	}
	if len(failed) > 0 {
		t.Errorf("some of %d lists of events failed: %v", lists, failed)
	}
	t.Logf("%d lists of events during the restarts", lists)

	// All workers list the same events in the same order, for any page size.
	want, err := createdEvents(stable.url, 1000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := createdEvents(restarted.url, 333)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) || len(want) != n {
		t.Errorf("%d events at one worker, %d at the other, want the same %d", len(want), len(got), n)
	}

	// Release aggregates of both workers, half of them while one worker restarts.
	ids := b.blockUsers(8, stable, restarted)
	started := make(chan struct{})
	for i, id := range ids {
		if i == len(ids)/2 {
			restarted.stop()
			go func() { restart(); close(started) }()
		}
		stable.checkRelease(id)
	}
	if code, body := stable.release("nobody", ""); code != http.StatusNotFound || !strings.Contains(body, "projector blocked user") {
		t.Errorf("unknown user: %d %s", code, body)
	}
	<-started
	b.awaitPartitions(2, stable, restarted)
	for _, id := range ids {
		b.await(id+" to be released", func() error {
			body, _, err := fetch(stable.url + "/v1/projections/user/" + id)
			if err == nil && !bytes.Contains(body, []byte(`"name":"good"`)) {
				err = fmt.Errorf("%s", body)
			}
			return err
		})
	}
	restarted.stop()
	stable.stop()
}

// awaitPartitions waits until each of the workers has n partitions.
func (b *rebuildBox) awaitPartitions(n int, workers ...*rebuildWorker) {
	b.t.Helper()
	b.await(fmt.Sprintf("%d workers to have %d partitions each", len(workers), n), func() error {
		for _, w := range workers {
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
			if len(has) != 1 || len(has[0].Offsets) != n {
				return fmt.Errorf("%s has %v", w.name, has)
			}
		}
		return nil
	})
}

// blockUsers blocks the first n users, each with one event queued, waits until all workers
// list them, and returns their ids. They must be in at least three partitions, so more than
// one worker owns some.
func (b *rebuildBox) blockUsers(n int, workers ...*rebuildWorker) (ids []string) {
	b.t.Helper()
	var events []string
	for i := range n {
		ids = append(ids, rebuildUser(i))
		for _, name := range []string{"bad", "good"} {
			events = append(events, fmt.Sprintf(`{"type":"UserUpdated","data":{"id":%q,"name":%q}}`+"\n", rebuildUser(i), name))
		}
	}
	b.send(events...)
	for _, w := range workers {
		b.await("all of "+strings.Join(ids, ", ")+" to be blocked", func() error {
			var have []string
			partitions := map[int]bool{}
			for _, it := range w.blocked() {
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
	return ids
}

type blockedUser struct {
	ID        string `json:"id"`
	Partition int    `json:"partition"`
	Queued    int    `json:"queued"`
}

// blocked returns the blocked users that a worker lists.
func (w *rebuildWorker) blocked() []blockedUser {
	w.t.Helper()
	var list struct {
		Items []blockedUser `json:"items"`
	}
	if err := json.Unmarshal(w.query("blocked", "user", "--json"), &list); err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

// release requests the release of a user and returns the status and the body.
func (w *rebuildWorker) release(id, query string) (int, string) {
	w.t.Helper()
	resp, err := http.Post(w.url+"/v1/blocked/user/"+id+"/release"+query, "", nil) //nolint:noctx // bounded by the test's own timeout
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// checkRelease releases a user that blockUsers blocked: first without skip, which blocks it
// again, and then with skip.
func (w *rebuildWorker) checkRelease(id string) {
	w.t.Helper()
	if code, body := w.release(id, ""); code != http.StatusOK || !strings.Contains(body, `"events":0,"blocked":{`) {
		w.t.Errorf("%s, without skip: %d %s", id, code, body)
	}
	if code, body := w.release(id, "?skip=true"); code != http.StatusOK || !strings.Contains(body, `"events":2}`) {
		w.t.Errorf("%s: %d %s", id, code, body)
	}
	if code, body := w.release(id, ""); code != http.StatusConflict || !strings.Contains(body, "is not blocked") {
		w.t.Errorf("%s, again: %d %s", id, code, body)
	}
}
