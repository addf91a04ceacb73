package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// ordered holds the expected totals of users, computed without Millrace.
type ordered struct {
	Orders map[string]int64 `json:"orders_of_user"`
	Cents  map[string]int64 `json:"amount_cents_of_user"`
}

// orderEvents returns a file of events and the expected totals of some users: the file of
// MILLRACE_CDNOW if it is set, or else synthetic orders.
func orderEvents(t *testing.T) (file string, want ordered) {
	t.Helper()
	if file = os.Getenv("MILLRACE_CDNOW"); file != "" {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cdnow-expected.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatal(err)
		}
		if len(want.Orders) != 10 || len(want.Cents) != 10 {
			t.Fatalf("expected totals of %d and %d users, want 10", len(want.Orders), len(want.Cents))
		}
		return file, want
	}
	t.Log("MILLRACE_CDNOW is not set: using synthetic events")
	const seed, users, orders = 7, 50, 5000
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	want = ordered{map[string]int64{}, map[string]int64{}}
	file = filepath.Join(t.TempDir(), "orders.jsonl")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewWriter(out)
	for i := range orders {
		user, cents := fmt.Sprintf("u-%02d", rng.IntN(users)), rng.Int64N(100_00)
		want.Orders[user]++
		want.Cents[user] += cents
		fmt.Fprintf(lines, `{"type":"OrderCreated","data":{"id":"o-%d","user_id":%q,"items":[],"total_amount":%d.%02d}}`+"\n", i, user, cents/100, cents%100)
	}
	if err := lines.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return file, want
}

// TestOrdersPerUserAddUp runs examples/orders-per-user: a pipeline keys orders by user, and
// a projection adds them up.
func TestOrdersPerUserAddUp(t *testing.T) {
	const topology = "../../examples/orders-per-user/topology.yaml"
	file, want := orderEvents(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()

	up := exec.CommandContext(ctx, filepath.Join(bin, "sandbox"), "up", "--bin", bin, "-t", topology)
	up.Cancel = func() error { return up.Process.Signal(syscall.SIGTERM) }
	up.WaitDelay = 30 * time.Second
	output, writer := io.Pipe()
	up.Stdout, up.Stderr = writer, writer
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan [3]string, 1)
	go func() { // ends with the pipe
		var at [3]string
		lines := bufio.NewScanner(output)
		kafka := regexp.MustCompile(`Kafka at (\S+), schema registry at (\S+)`)
		projector := regexp.MustCompile(`projector ready at (\S+)`)
		for lines.Scan() {
			if m := kafka.FindStringSubmatch(lines.Text()); m != nil {
				at[0], at[1] = m[1], m[2]
			}
			if m := projector.FindStringSubmatch(lines.Text()); m != nil {
				at[2] = m[1]
				ready <- at
			}
		}
		close(ready)
	}()
	stopped := make(chan error, 1)
	go func() {
		err := up.Wait()
		writer.Close()
		stopped <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Logf("stopping the sandbox: %v", err)
		}
	})
	at, ok := <-ready
	if !ok {
		t.Fatal("the sandbox stopped before the projector was ready")
	}

	send := exec.CommandContext(ctx, filepath.Join(bin, "producer"), "send", "-t", topology, "-b", at[0], "-r", at[1], file)
	if text, err := send.CombinedOutput(); err != nil {
		t.Fatalf("producer send: %v\n%s", err, text)
	}

	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for user := range want.Orders {
		for {
			orders, cents := ordersOf(ctx, t, at[2], user)
			if orders == want.Orders[user] && cents == want.Cents[user] {
				break
			}
			// Totals only grow, so waiting cannot fix a total that is too large.
			if orders > want.Orders[user] || cents > want.Cents[user] {
				t.Fatalf("%s has %d orders of %d cents, want %d of %d", user, orders, cents, want.Orders[user], want.Cents[user])
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("%s still has %d orders of %d cents, want %d of %d", user, orders, cents, want.Orders[user], want.Cents[user])
			}
		}
	}
}

// ordersOf returns the projector's totals of a user, or zeros if the projection does not
// have the user yet.
func ordersOf(ctx context.Context, t *testing.T, projector, user string) (orders, cents int64) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, projector+"/v1/projections/user-orders/"+user, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return 0, 0
	}
	var got struct {
		State struct {
			UserID string `json:"user_id"`
			Orders int64  `json:"orders"`
			Cents  int64  `json:"amount_cents"`
		} `json:"state"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.State.UserID != user {
		t.Fatalf("the answer for %s is the state of %s", user, got.State.UserID)
	}
	return got.State.Orders, got.State.Cents
}
