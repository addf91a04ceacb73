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
// request is being answered is not closed; if all are, the new one is.
type conns struct {
	most    int
	dropped func() // counts a connection that was closed at the limit

	mu   sync.Mutex // guards the rest; no connection is closed under it
	all  map[net.Conn]*connection
	wait *list.List // of *connection, those that wait for their client, the longest first
}

// connection is a connection of a server. conns.mu guards it.
type connection struct {
	conn net.Conn
	busy int // requests that are being answered
	at   *list.Element
}

func newConns(most int, dropped func()) *conns {
	return &conns{most: most, dropped: dropped, all: map[net.Conn]*connection{}, wait: list.New()}
}

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
		oldest := c.wait.Front()
		if oldest == nil {
			return conn
		}
		drop = oldest.Value.(*connection).conn
		c.forget(drop)
	}
	of := &connection{conn: conn}
	of.at = c.wait.PushBack(of)
	c.all[conn] = of
	return drop
}

func (c *conns) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(conn)
}

// forget removes a connection. The caller has the lock.
func (c *conns) forget(conn net.Conn) {
	if of := c.all[conn]; of != nil && of.at != nil {
		c.wait.Remove(of.at)
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
	if of.at != nil {
		c.wait.Remove(of.at)
		of.at = nil
	}
	if of.busy == 0 {
		of.at = c.wait.PushBack(of)
	}
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
	return f.ResponseWriter.Write(b)
}

// FlushError is for [http.ResponseController].
func (f *followedWriter) FlushError() error {
	f.phase.set(false)
	defer f.phase.set(true)
	return http.NewResponseController(f.ResponseWriter).Flush()
}

// Unwrap is for [http.ResponseController].
func (f *followedWriter) Unwrap() http.ResponseWriter { return f.ResponseWriter }
