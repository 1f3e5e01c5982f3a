package control

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"meshnode/node"
	"meshnode/node/doctor"
	"meshnode/protocol"
)

// ErrNoNode says that no node runs in a data directory.
var ErrNoNode = errors.New("no node runs here")

// ErrNoAnswer says that the node's process is there, and does not answer: it is stopped, or stuck.
var ErrNoAnswer = errors.New("says nothing")

// defaultAnswerTime is longer than any disk or busy machine keeps a node from answering, and as long as a person waits.
const defaultAnswerTime = 10 * time.Second

// Client talks to the node of one data directory. All methods may be called concurrently. An error that
// the node answered with is a *node.Error; one because there is no node (any more) wraps ErrNoNode.
type Client struct {
	dataDir string
	http    http.Client

	// Lost is called by Submit, Follow, Wait, Result and Input when the connection is lost and they wait for the node to come
	// back, and with nil when it is back. Nil: nobody is told. Set it before the first call.
	Lost func(err error)
	// Patience is how long they wait for a lost node. 0: 60 s.
	Patience time.Duration
	// AnswerTime is how long a node may take for an answer that needs no work: ErrNoAnswer. 0: 10 s.
	AnswerTime time.Duration

	mu   sync.Mutex // guards info
	info Info
}

// dialTime is how long a node may take to take a connection: the system does that for it.
const dialTime = 5 * time.Second

// Dial finds the node of a data directory and tries its socket once. Errors: ErrNoNode.
func Dial(dataDir string) (*Client, error) {
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, err
	}
	c := &Client{dataDir: dataDir}
	c.http.Transport = &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
		MaxIdleConns:       2,
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	conn, err := c.dial(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, c.noAnswer(dialTime)
	}
	if err != nil {
		return nil, err
	}
	conn.Close()
	return c, nil
}

// Close closes connections that are kept open between calls. Running calls go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// dial reads control.json each time: a node that was started again may listen elsewhere.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	info, err := readInfo(c.dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: its data directory would be %s", ErrNoNode, c.dataDir)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.info = info
	c.mu.Unlock()
	var d net.Dialer
	var conn net.Conn
	if info.Socket != "" {
		conn, err = d.DialContext(ctx, "unix", info.Socket)
	} else {
		conn, err = d.DialContext(ctx, "tcp", info.Address)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("connect to the node in %s: %w", c.dataDir, err)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", ErrNoNode, err)
	}
	return conn, nil
}

// Info is where the node was found by the last connection.
func (c *Client) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// newRequest fills in what the server's guard wants. Host and token are those of control.json now.
func (c *Client) newRequest(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	info, err := readInfo(c.dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: its data directory would be %s", ErrNoNode, c.dataDir)
	}
	if err != nil {
		return nil, err
	}
	host := info.Address
	if host == "" {
		host = "meshnode"
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, body)
	if err != nil {
		return nil, err
	}
	if info.Token != "" {
		req.Header.Set("Authorization", "Bearer "+info.Token)
	}
	return req, nil
}

// call makes one request. In and out are JSON, and may be nil; an io.Reader is sent as it is.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	switch in := in.(type) {
	case nil:
	case io.Reader:
		body = in
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if cut(err) {
			return fmt.Errorf("%w: it went away during the request", ErrNoNode)
		}
		return fmt.Errorf("read the node's answer: %w", err)
	}
	return nil
}

// ask is call of what a node answers at once, if it lives: the error wraps ErrNoAnswer if it says nothing for AnswerTime.
func (c *Client) ask(ctx context.Context, method, path string, in, out any) error {
	limit := cmp.Or(c.AnswerTime, defaultAnswerTime)
	short, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := c.call(short, method, path, in, out)
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return c.noAnswer(limit)
	}
	return err
}

func (c *Client) noAnswer(after time.Duration) error {
	who := "the node in " + c.dataDir
	if pid := c.Info().PID; pid > 0 {
		who += fmt.Sprintf(" (process %d)", pid)
	}
	return fmt.Errorf("%s %w for %v", who, ErrNoAnswer, after)
}

// do makes a request, and makes an error of any answer but 200. The caller closes the body.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := c.newRequest(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if e := (*url.Error)(nil); errors.As(err, &e) {
			err = e.Err // without the made-up URL
		}
		if cut(err) {
			return nil, fmt.Errorf("%w: it went away during the request", ErrNoNode)
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

// cut says that a connection ended where more was to come.
func cut(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, new(*net.OpError))
}

func readError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxJSON))
	var e errorBody
	if json.Unmarshal(b, &e) != nil || e.Error == nil {
		return fmt.Errorf("the node answered %s", resp.Status)
	}
	return e.Error
}

// Status is the node at a glance.
func (c *Client) Status(ctx context.Context) (node.Status, error) {
	var s node.Status
	return s, c.ask(ctx, "GET", "/v1/status", nil, &s)
}

// Peers lists this node first, then the other members.
func (c *Client) Peers(ctx context.Context) ([]node.Peer, error) {
	var p []node.Peer
	return p, c.ask(ctx, "GET", "/v1/peers", nil, &p)
}

// Jobs lists the node's jobs, newest first.
func (c *Client) Jobs(ctx context.Context) ([]node.Job, error) {
	var j []node.Job
	return j, c.ask(ctx, "GET", "/v1/jobs", nil, &j)
}

func jobPath(name string) string { return "/v1/jobs/" + url.PathEscape(name) }

// Job is the job that name names: an id, its first digits, or @last. An ambiguous name is a *node.Error
// that lists candidates.
func (c *Client) Job(ctx context.Context, name string) (node.Job, error) {
	var j node.Job
	return j, c.ask(ctx, "GET", jobPath(name), nil, &j)
}

// Wait returns the job when it has ended. It waits for a node that goes away meanwhile (Patience); name should then
// be an id, because @last may be another job.
func (c *Client) Wait(ctx context.Context, name string) (node.Job, error) {
	var j node.Job
	err := c.persist(ctx, func(back func()) (answered bool, err error) {
		if _, err = c.Job(ctx, name); err != nil {
			return false, err
		}
		back()
		return true, c.call(ctx, "GET", jobPath(name)+"?wait=1", nil, &j)
	})
	return j, err
}

// persist calls try until it ends otherwise than by the loss of the node, or the node stays away. Try calls back once
// it has reached the node, and says whether the node answered it: then what is lost is lost anew.
func (c *Client) persist(ctx context.Context, try func(back func()) (answered bool, err error)) error {
	patience := c.Patience
	if patience == 0 {
		patience = 60 * time.Second
	}
	var lostAt time.Time // zero: connected
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		answered, err := try(func() {
			if !lostAt.IsZero() && c.Lost != nil {
				c.Lost(nil)
			}
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !isLost(err) {
			return err
		}
		if answered || lostAt.IsZero() {
			lostAt, wait = time.Now(), 20*time.Millisecond
			if c.Lost != nil {
				c.Lost(err)
			}
		}
		if time.Since(lostAt) > patience {
			return fmt.Errorf("wait %v for the node to come back: %w", patience, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// read is a request that persists: what calls it has been through losses, and would not survive another one.
func (c *Client) read(ctx context.Context, path string, out any) error {
	return c.persist(ctx, func(back func()) (bool, error) {
		err := c.ask(ctx, "GET", path, nil, out)
		if !isLost(err) {
			back()
		}
		return false, err
	})
}

// isLost says that there is no node now, or that it is going down, or does not answer.
func isLost(err error) bool {
	e := (*node.Error)(nil)
	return errors.Is(err, ErrNoNode) || errors.Is(err, ErrNoAnswer) || errors.As(err, &e) && e.Code == node.CodeStopping
}

// Cancel ends a job, or the one task of it with that index.
func (c *Client) Cancel(ctx context.Context, name string, index *uint32) (node.Job, error) {
	path := jobPath(name) + "/cancel"
	if index != nil {
		path += "?task=" + strconv.Itoa(int(*index))
	}
	var j node.Job
	return j, c.ask(ctx, "POST", path, nil, &j)
}

// Rerun makes a new job of the tasks of an ended one. A zero r.ID is replaced by a new one. It waits for a node that goes
// away meanwhile (Patience); name should then be an id.
func (c *Client) Rerun(ctx context.Context, name string, r node.Rerun) (node.Job, error) {
	if r.ID.IsZero() {
		r.ID = protocol.NewJobID()
	}
	var j node.Job
	err := c.persist(ctx, func(back func()) (bool, error) {
		err := c.call(ctx, "POST", jobPath(name)+"/rerun", rerunBody{r.ID.String(), r.Failed, r.Detached}, &j)
		if !isLost(err) {
			back()
		}
		return false, err
	})
	return j, err
}

// Result is how a task ended. A *node.Error with the code "not_ended" says that it has not yet.
func (c *Client) Result(ctx context.Context, name string, index uint32) (node.TaskResult, error) {
	var r resultJSON
	err := c.read(ctx, jobPath(name)+"/tasks/"+strconv.Itoa(int(index)), &r)
	return r.result(), err
}

// Input is the input of a task.
func (c *Client) Input(ctx context.Context, name string, index uint32) ([]byte, error) {
	var in [][]byte
	if err := c.read(ctx, jobPath(name)+"/inputs?n=1&first="+strconv.Itoa(int(index)), &in); err != nil {
		return nil, err
	}
	if len(in) == 0 {
		return nil, &node.Error{Code: node.CodeNoTask, Message: fmt.Sprintf("job %s has no task %d", name, index)}
	}
	return in[0], nil
}

// PutProgram stores a program of up to MaxProgram bytes at the node and returns its name.
func (c *Client) PutProgram(ctx context.Context, r io.Reader) (protocol.BlobID, error) {
	b, err := c.PutBlob(ctx, r)
	if err != nil {
		return protocol.BlobID{}, err
	}
	return protocol.ParseBlobID(b.ID)
}

// PutBlob stores bytes at the node, up to MaxBlob, and returns their name and number. They stay for 10 minutes, or for as long as
// a job needs them.
func (c *Client) PutBlob(ctx context.Context, r io.Reader) (node.Blob, error) {
	var a blobAnswer
	err := c.call(ctx, "PUT", "/v1/blobs", r, &a)
	return node.Blob{ID: a.ID, Size: a.Size}, err
}

// GetBlob reads a blob of the node, by its id or as sha256:HASH. The caller closes it; a read fails if fewer bytes come than size.
func (c *Client) GetBlob(ctx context.Context, name string) (r io.ReadCloser, size int64, err error) {
	resp, err := c.do(ctx, "GET", "/v1/blobs/"+url.PathEscape(name), nil)
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// Blobs are the blobs of the node.
func (c *Client) Blobs(ctx context.Context) (node.BlobStore, error) {
	var s node.BlobStore
	return s, c.ask(ctx, "GET", "/v1/blobs", nil, &s)
}

// GCBlobs removes blobs that nothing needs, the least recently used first, until all take no more than to bytes.
func (c *Client) GCBlobs(ctx context.Context, to int64) (freed, occupied int64, err error) {
	var a gcAnswer
	err = c.call(ctx, "POST", "/v1/blobs/gc", gcBody{to}, &a)
	return a.Freed, a.Occupied, err
}

// DeleteBlob removes a blob that nothing needs.
func (c *Client) DeleteBlob(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/blobs/"+url.PathEscape(name), nil, nil)
}

// Invite makes a ticket.
func (c *Client) Invite(ctx context.Context, o node.InviteOptions) (ticket string, err error) {
	var a inviteAnswer
	err = c.ask(ctx, "POST", "/v1/invite", inviteBody{Mine: o.Mine, Guest: o.Guest, ExpiresMS: o.Expires.Milliseconds(), Uses: o.Uses, Runtimes: o.Runtimes}, &a)
	return a.Ticket, err
}

// Connect has the node connect a member: by its name, its id, or an address, HOST:PORT or a multiaddr.
func (c *Client) Connect(ctx context.Context, addr string) (node.Connected, error) {
	var a node.Connected
	err := c.ask(ctx, "POST", "/v1/connect", connectBody{Addr: addr}, &a)
	return a, err
}

// Join makes the node a member of the ticket's mesh, and returns the mesh's name.
func (c *Client) Join(ctx context.Context, ticket string) (mesh string, err error) {
	var a node.Joined
	err = c.call(ctx, "POST", "/v1/join", joinBody{Ticket: ticket}, &a)
	return a.Mesh, err
}

// InviteCode makes a short code.
func (c *Client) InviteCode(ctx context.Context, o node.InviteOptions) (code string, err error) {
	var a inviteAnswer
	err = c.ask(ctx, "POST", "/v1/invite", inviteBody{Mine: o.Mine, Guest: o.Guest, ExpiresMS: o.Expires.Milliseconds(), Uses: o.Uses, Runtimes: o.Runtimes, Code: true}, &a)
	return a.Code, err
}

// Code says what became of a short code; withdraw ends it first.
func (c *Client) Code(ctx context.Context, code string, withdraw bool) (node.Code, error) {
	var a node.Code
	return a, c.ask(ctx, "POST", "/v1/code", codeBody{Code: code, Withdraw: withdraw}, &a)
}

// JoinCode is Join with a short code. at is where who gave it out listens; "": it is looked for in the local network.
func (c *Client) JoinCode(ctx context.Context, code, at string) (node.Joined, error) {
	var a node.Joined
	return a, c.call(ctx, "POST", "/v1/join", joinBody{Ticket: code, At: at}, &a)
}

// ConnectBySecret is Connect with who is at an address, and need not be a member yet, if it knows the secret.
func (c *Client) ConnectBySecret(ctx context.Context, addr, secret string) (node.Connected, error) {
	var a node.Connected
	return a, c.ask(ctx, "POST", "/v1/connect", connectBody{Addr: addr, Secret: secret}, &a)
}

// Leave takes the node out of its mesh. Without force the machine with the root key of a mesh with others in it stays.
func (c *Client) Leave(ctx context.Context, force bool) (node.Left, error) {
	var l node.Left
	return l, c.call(ctx, "POST", "/v1/leave", leaveBody{force}, &l)
}

// Recover makes the node the holder of the root key of the mesh that the recovery code is of, and returns the mesh's name.
func (c *Client) Recover(ctx context.Context, code string) (mesh string, err error) {
	var a recoverAnswer
	err = c.call(ctx, "POST", "/v1/recover", recoverBody{code}, &a)
	return a.Mesh, err
}

// Revoke ends a member's membership for good, everywhere. Peer is a name or an id, here and in what follows.
func (c *Client) Revoke(ctx context.Context, peer, reason string, withIssued bool) (node.Revoked, error) {
	var a node.Revoked
	return a, c.ask(ctx, "POST", "/v1/peers/revoke", revokeBody{peer, reason, withIssued}, &a)
}

// Rename gives a member a name that only this node uses; "" takes it back.
func (c *Client) Rename(ctx context.Context, peer, name string) error {
	return c.ask(ctx, "POST", "/v1/peers/rename", renameBody{peer, name}, nil)
}

// Forget drops what the node knows of a member that is gone.
func (c *Client) Forget(ctx context.Context, peer string) error {
	return c.ask(ctx, "POST", "/v1/peers/forget", peerBody{peer}, nil)
}

// Allow lets a member use runtimes at this node, or with Work this node's tasks go there; Deny forbids it. Both return the peer as it
// stands then.
func (c *Client) Allow(ctx context.Context, peer string, o node.PeerPolicy) (node.Peer, error) {
	var p node.Peer
	return p, c.ask(ctx, "POST", "/v1/allow", policyBody{peer, o.Runtimes, o.Work}, &p)
}

// Deny is the opposite of Allow.
func (c *Client) Deny(ctx context.Context, peer string, o node.PeerPolicy) (node.Peer, error) {
	var p node.Peer
	return p, c.ask(ctx, "POST", "/v1/deny", policyBody{peer, o.Runtimes, o.Work}, &p)
}

// SetSlots changes how many tasks run at once, until the node ends.
func (c *Client) SetSlots(ctx context.Context, n int) error {
	return c.ask(ctx, "POST", "/v1/slots", slotsBody{&n}, nil)
}

// Pause stops taking and starting work, for d (0: until Resume).
func (c *Client) Pause(ctx context.Context, d time.Duration) error {
	return c.ask(ctx, "POST", "/v1/pause", pauseBody{d.Milliseconds()}, nil)
}

// Resume ends a pause.
func (c *Client) Resume(ctx context.Context) error {
	return c.ask(ctx, "POST", "/v1/resume", nil, nil)
}

// Drain stops taking and starting work until Resume; Status says when nothing runs any more.
func (c *Client) Drain(ctx context.Context) error {
	return c.ask(ctx, "POST", "/v1/drain", nil, nil)
}

// Why says why something is where it is: JOB, JOB/TASK or PEER, a job by its id, the first digits of it or @last, a peer by
// its name or id.
func (c *Client) Why(ctx context.Context, subject string) (node.Why, error) {
	var w node.Why
	return w, c.ask(ctx, "GET", "/v1/why?subject="+url.QueryEscape(subject), nil, &w)
}

// Ping looks at a member, named by its name or id, once. Of one that is not connected each known address is asked, which takes seconds.
func (c *Client) Ping(ctx context.Context, peer string) (node.Ping, error) {
	var p node.Ping
	return p, c.call(ctx, "POST", "/v1/ping", peerBody{peer}, &p)
}

// Doctor has the node look for what keeps it from finding others, from being found, and from working. It takes some seconds.
func (c *Client) Doctor(ctx context.Context) (doctor.Report, error) {
	var r doctor.Report
	return r, c.call(ctx, "GET", "/v1/doctor", nil, &r)
}

// Shutdown begins a clean stop of the node and returns at once.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.ask(ctx, "POST", "/v1/shutdown", nil, nil)
}

// openStream returns a connection that speaks local frames, and a reader with what was read of it.
func (c *Client) openStream(ctx context.Context) (net.Conn, *bufio.Reader, error) {
	req, err := c.newRequest(ctx, "POST", "/v1/stream", nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", streamProtocol)
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	limit := cmp.Or(c.AnswerTime, defaultAnswerTime)
	conn.SetDeadline(time.Now().Add(limit))
	fail := func(err error) (net.Conn, *bufio.Reader, error) {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			err = c.noAnswer(limit)
		}
		return nil, nil, err
	}
	if err := req.Write(conn); err != nil {
		return fail(fmt.Errorf("%w: %w", ErrNoNode, err))
	}
	br := bufio.NewReaderSize(conn, 256<<10)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrNoNode, err))
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		err := readError(resp)
		return fail(err)
	}
	conn.SetDeadline(time.Time{})
	return conn, br, nil
}

// Watching is what a Watch asks for.
type Watching struct {
	Cursor uint32 // seq of the first result wanted
	Inputs bool   // with inputs
	Now    bool   // no more than what is there now
}

// Watch calls deliver with the results of a job in the order in which its tasks ended, and returns the job
// after the last: as it ended, or as it is if w.Now. The slice is valid during the call only. The job needs
// its whole id.
func (c *Client) Watch(ctx context.Context, job protocol.JobID, w Watching, deliver func([]Result) error) (node.Job, error) {
	conn, br, err := c.openStream(ctx)
	if err != nil {
		return node.Job{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var flags byte
	if w.Inputs {
		flags |= protocol.WatchInputs
	}
	if w.Now {
		flags |= protocol.WatchNow
	}
	if _, err := conn.Write(protocol.AppendLocal(nil, protocol.ControlWatch, 1, encodeWatch(job, w.Cursor, flags))); err != nil {
		return node.Job{}, lost(ctx, err)
	}
	var rs []Result
	for {
		t, _, body, err := protocol.ReadLocal(br, protocol.MaxLocal)
		if err != nil {
			return node.Job{}, lost(ctx, err)
		}
		switch t {
		case protocol.ControlResults:
			if rs, err = decodeResults(rs[:0], body); err != nil {
				return node.Job{}, err
			}
			for i := range rs {
				if rs[i].InputLeftOut {
					if rs[i].Input, err = c.Input(ctx, job.String(), rs[i].Index); err != nil {
						return node.Job{}, err
					}
				}
			}
			if err := deliver(rs); err != nil {
				return node.Job{}, err
			}
		case protocol.ControlEnd:
			var j node.Job
			return j, json.Unmarshal(body, &j)
		case protocol.ControlError:
			return node.Job{}, decodeError(body)
		default:
			return node.Job{}, fmt.Errorf("%w: frame of type %#x from the node", protocol.ErrProtocol, byte(t))
		}
	}
}

// Follow is Watch that waits for a node that goes away meanwhile (Patience), and then delivers what was not delivered
// yet: each task once, in an order that may be another than before.
func (c *Client) Follow(ctx context.Context, job protocol.JobID, w Watching, deliver func([]Result) error) (node.Job, error) {
	var j node.Job
	var seen bitmap
	err := c.persist(ctx, func(back func()) (answered bool, err error) {
		if _, err = c.Job(ctx, job.String()); err != nil {
			return false, err
		}
		back()
		j, err = c.Watch(ctx, job, w, func(rs []Result) error {
			fresh := rs[:0]
			for _, r := range rs {
				if seen.set(r.Index) {
					fresh = append(fresh, r)
				}
			}
			if len(fresh) == 0 {
				return nil
			}
			return deliver(fresh)
		})
		return true, err
	})
	return j, err
}

func decodeError(body []byte) error {
	e := new(node.Error)
	if err := json.Unmarshal(body, e); err != nil {
		return fmt.Errorf("%w: error frame: %v", protocol.ErrProtocol, err)
	}
	return e
}

// lost turns the end of a connection into an error for the caller.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, protocol.ErrProtocol) {
		return err
	}
	return fmt.Errorf("%w: the connection to it was lost: %w", ErrNoNode, err)
}
