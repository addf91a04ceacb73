package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
)

// conns limits the connections of a server. At the limit, a new connection replaces the one
// that has waited for its client the longest: for a request, its header or its body. So
// connections that send nothing, or slowly, do not keep others out. A connection whose
// request is being answered is not closed; if all are, the new one is. If more than half of
// the connections wait for the end of their first request, one of them is closed: a flood of
// connections does not close those of clients at work.
//
// Each answer that is being written takes memory. So there is a limit for these, too, at
// which the one whose client does not read for the longest time is closed.
type conns struct {
	most    int
	dropped func() // counts a connection that was closed at the limit

	mu    sync.Mutex // guards the rest; no connection is closed under it
	all   map[net.Conn]*connection
	fresh *list.List // of *connection: they wait for their first request, the longest first
	known *list.List // of *connection: they had a request, and wait for their client, the longest first
	turns int        // counts how often a connection began to wait
	write *list.List // of net.Conn: those that an answer is being written to, the longest first
}

// connection is a connection of a server. conns.mu guards it.
type connection struct {
	conn net.Conn
	busy int        // requests that are being answered
	in   *list.List // fresh or known; nil if it does not wait
	at   *list.Element
	turn int // when it began to wait, of conns.turns
}

func newConns(most int, dropped func()) *conns {
	return &conns{most: most, dropped: dropped, all: map[net.Conn]*connection{}, fresh: list.New(), known: list.New(), write: list.New()}
}

// perWrite is the share of the connections that may have an answer in a write: 1/perWrite.
const perWrite = 8

// connKey is the key of the connection in the context of a request.
type connKey struct{}

// context implements http.Server.ConnContext.
func (c *conns) context(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// state implements http.Server.ConnState. The server calls it with a new connection before
// it accepts the next one.
func (c *conns) state(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if drop := c.add(conn); drop != nil {
			c.dropped()
			abort(drop)
		}
	case http.StateActive, http.StateIdle:
		c.change(conn, 0)
	case http.StateHijacked, http.StateClosed:
		c.remove(conn)
	}
}

// abort closes a connection without a last message, for which TLS would wait.
func abort(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close() // the server notices, and closes it again
}

// add adds a connection, and returns one to close if there are too many.
func (c *conns) add(conn net.Conn) (drop net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) >= c.most {
		oldest := c.oldest()
		if oldest == nil {
			return conn
		}
		drop = oldest.conn
		c.forget(drop)
	}
	of := &connection{conn: conn}
	c.wait(of, c.fresh)
	c.all[conn] = of
	return drop
}

// oldest returns the connection to close, nil if all are at work. The caller has the lock.
func (c *conns) oldest() *connection {
	fresh, known := front(c.fresh), front(c.known)
	if known == nil || fresh != nil && (c.fresh.Len() > c.most/2 || fresh.turn < known.turn) {
		return fresh
	}
	return known
}

func front(l *list.List) *connection {
	if e := l.Front(); e != nil {
		return e.Value.(*connection)
	}
	return nil
}

// wait puts a connection at the end of a list; nil means that it does not wait. The caller
// has the lock.
func (c *conns) wait(of *connection, in *list.List) {
	if of.in != nil {
		of.in.Remove(of.at)
	}
	if of.in = in; in != nil {
		c.turns++
		of.turn, of.at = c.turns, in.PushBack(of)
	}
}

func (c *conns) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(conn)
}

// forget removes a connection. The caller has the lock.
func (c *conns) forget(conn net.Conn) {
	if of := c.all[conn]; of != nil {
		c.wait(of, nil)
	}
	delete(c.all, conn)
}

// change adds to the number of requests of a connection that do not wait for the client. A
// connection that waits is the last one in the order from here on.
func (c *conns) change(conn net.Conn, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.all[conn]
	if of == nil {
		return // it was dropped
	}
	of.busy += by
	switch {
	case of.busy > 0:
		c.wait(of, nil)
	case of.in == c.fresh:
		c.wait(of, c.fresh) // for the rest of its first request
	default:
		c.wait(of, c.known)
	}
}

// beginWrite notes that an answer is being written, until endWrite gets its result.
func (c *conns) beginWrite(conn net.Conn) *list.Element {
	at, drop := c.addWrite(conn)
	if drop != nil {
		c.dropped()
		abort(drop)
	}
	return at
}

func (c *conns) addWrite(conn net.Conn) (at *list.Element, drop net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.write.Len() >= max(1, c.most/perWrite) {
		drop = c.write.Remove(c.write.Front()).(net.Conn)
	}
	return c.write.PushBack(conn), drop
}

func (c *conns) endWrite(at *list.Element) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write.Remove(at) // nothing, if it was dropped
}

// count returns the number of connections.
func (c *conns) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all)
}

// follow notes when requests wait for their client.
func (c *conns) follow(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, ok := r.Context().Value(connKey{}).(net.Conn)
		if !ok {
			next.ServeHTTP(w, r) // not of this server
			return
		}
		p := &phase{conns: c, conn: conn}
		if r.Body == nil || r.Body == http.NoBody {
			p.set(true)
		} else {
			r.Body = &followedBody{r.Body, p}
		}
		defer p.set(false)
		next.ServeHTTP(&followedWriter{w, p}, r)
	})
}

// phase tells whether a request waits for its client. Its own lock is for handlers that
// read the body and write at the same time.
type phase struct {
	conns *conns
	conn  net.Conn

	mu   sync.Mutex // is held while conns.mu is taken
	busy bool
}

func (p *phase) set(busy bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy == busy {
		return
	}
	p.busy = busy
	if busy {
		p.conns.change(p.conn, 1)
	} else {
		p.conns.change(p.conn, -1)
	}
}

// followedBody is the body of a request: after its end, the request does not wait for its
// client.
type followedBody struct {
	io.ReadCloser
	phase *phase
}

func (b *followedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.phase.set(true)
	}
	return n, err
}

// followedWriter writes an answer: during a write, the request waits for its client.
type followedWriter struct {
	http.ResponseWriter
	phase *phase
}

func (f *followedWriter) Write(b []byte) (int, error) {
	f.phase.set(false)
	defer f.phase.set(true)
	at := f.phase.conns.beginWrite(f.phase.conn)
	defer f.phase.conns.endWrite(at)
	return f.ResponseWriter.Write(b)
}

// FlushError is for [http.ResponseController].
func (f *followedWriter) FlushError() error {
	f.phase.set(false)
	defer f.phase.set(true)
	at := f.phase.conns.beginWrite(f.phase.conn)
	defer f.phase.conns.endWrite(at)
	return http.NewResponseController(f.ResponseWriter).Flush()
}

// Unwrap is for [http.ResponseController].
func (f *followedWriter) Unwrap() http.ResponseWriter { return f.ResponseWriter }
