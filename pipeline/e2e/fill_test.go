package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline/sandbox"
)

// slowLog is a broker that holds reads of the first part of rebuilt.events.
type slowLog struct {
	c  *kfake.Cluster
	mu sync.Mutex // guards the fields below

	below   int64 // reads from lower offsets are held
	free    int   // but for so many from the start
	release chan struct{}
}

func newSlowLog(t *testing.T) *slowLog {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	s := &slowLog{c: c}
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if wait := s.holds(req.(*kmsg.FetchRequest)); wait != nil {
			c.SleepControl(func() { <-wait })
		}
		return nil, nil, false
	})
	return s
}

// holds returns what a request waits for, nil if it does not.
func (s *slowLog) holds(req *kmsg.FetchRequest) <-chan struct{} {
	events := s.c.TopicInfo("rebuilt.events")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			if events == nil || t.TopicID != events.TopicID || p.FetchOffset >= s.below {
				continue
			}
			if p.FetchOffset == 0 && s.free > 0 {
				s.free--
				continue
			}
			return s.release
		}
	}
	return nil
}

// hold holds reads of the log below an offset until the returned function is called. free
// reads from the start are answered.
func (s *slowLog) hold(t *testing.T, below int64, free int) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.below, s.free, s.release = below, free, make(chan struct{})
	release = sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.below = 0
		close(s.release)
	})
	t.Cleanup(release)
	return release
}

// newSlowBox is newRebuildBox, with one partition, on a broker that can hold reads.
func newSlowBox(t *testing.T) (*rebuildBox, *slowLog) {
	t.Helper()
	s := newSlowLog(t)
	registry, err := sandbox.New(sandbox.Config{NoBroker: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registry.Close(); err != nil {
			t.Error(err)
		}
	})
	return newRebuildBoxOn(t, 1, s.c.ListenAddrs(), registry.RegistryURL()), s
}

// want fetches a path of the worker, and returns what is wrong with the answer.
func (w *rebuildWorker) want(path string, status int, text string) error {
	body, got, err := fetch(w.url + path)
	if got == 0 {
		return err
	}
	if got != status || !strings.Contains(string(body), text) {
		return fmt.Errorf("%s: %d %s, want %d and %q", path, got, body, status, text)
	}
	return nil
}

// filled returns a function that fails while a worker fills histories.
func filled(url string) func() error {
	return func() error {
		text, _, err := fetch(url + "/readyz?verbose")
		if err == nil && (strings.Contains(string(text), "reading the history") || strings.Contains(string(text), "reading the ids")) {
			err = fmt.Errorf("%s", text)
		}
		return err
	}
}

// TestAProjectorIsReadyWhileItsHistoryIsFilled deletes the data directory of a projector. It
// is ready when the states are there; new events are folded when the ids of the past are
// known; and questions about the past are answered when the history is complete.
func TestAProjectorIsReadyWhileItsHistoryIsFilled(t *testing.T) {
	t.Parallel() // mostly waits
	b, broker := newSlowBox(t)
	b.send(created(0), created(1), updated(1, 1), updated(1, 2))
	w := b.start("one")
	user := "/v1/projections/user/" + rebuildUser(1)
	b.await("the last event", func() error { return w.want(user, 200, "name 2") })
	w.stop()
	if err := os.RemoveAll(filepath.Join(b.dir, "one")); err != nil {
		t.Fatal(err)
	}

	release := broker.hold(t, 4, 1) // the ids of the past can be read, the history cannot
	w = b.start("one")              // waits for /readyz
	for path, text := range map[string]string{
		"/readyz?verbose": "reading the history on rebuilt.events",
		user:              "name 2",
		"/metrics":        `phase="history"`,
	} {
		if err := w.want(path, 200, text); err != nil {
			t.Error(err)
		}
	}
	b.send(updated(1, 3))
	b.await("a new event", func() error { return w.want(user, 200, "name 3") })
	past := []string{user + "/history", user + "?at_version=1", user + "?at_recorded_time=2020-01-01T00:00:00Z", user + "/why", "/v1/events?type=UserUpdated"}
	for _, path := range past {
		if err := w.want(path, http.StatusServiceUnavailable, "the history is being filled after a restore"); err != nil {
			t.Error(err)
		}
	}
	if resp, err := http.Get(w.url + past[0]); err != nil || resp.Header.Get("Retry-After") == "" { //nolint:noctx // bounded by the test's own timeout
		t.Errorf("no Retry-After: %v, %v", resp, err)
	} else if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	release()
	b.await("the history", func() error { return w.want(past[0], 200, "name 1") })
	if body, _, err := fetch(w.url + past[0]); err != nil || !strings.Contains(string(body), `"version":4`) {
		t.Errorf("the history is %s, %v", body, err)
	}
	if body, _, err := fetch(w.url + "/readyz?verbose"); err != nil || strings.Contains(string(body), "reading the history") {
		t.Errorf("at the end: %s, %v", body, err)
	}
	w.stop()
}
