// Ends TLS in front of a server that cannot: a connection that comes in encrypted goes on in the clear.
//
// The certificate is read anew for each handshake, so that a renewed one is in use without a restart.
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"time"
)

const (
	// A client that connects and says nothing gives its place back.
	handshakePatience = 10 * time.Second
	dialPatience      = 5 * time.Second
)

func main() {
	listen := flag.String("listen", ":8443", "address to listen on")
	target := flag.String("target", "127.0.0.1:8123", "address of the server")
	certificate := flag.String("certificate", "/etc/tls/tls.crt", "the certificate, PEM")
	key := flag.String("key", "/etc/tls/tls.key", "its private key, PEM")
	flag.Parse()

	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(*certificate, *key)
		return &pair, err
	}
	if _, err := load(); err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() },
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("%s leads to %s", *listen, *target)
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Print(err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go carry(tls.Server(client, config), *target)
	}
}

func carry(client *tls.Conn, target string) {
	defer client.Close()
	client.SetDeadline(time.Now().Add(handshakePatience))
	if err := client.Handshake(); err != nil {
		// A probe connects and says nothing.
		if !errors.Is(err, io.EOF) {
			log.Printf("%s: %v", client.RemoteAddr(), err)
		}
		return
	}
	client.SetDeadline(time.Time{})
	connection, err := net.DialTimeout("tcp", target, dialPatience)
	if err != nil {
		log.Printf("%s: %v", client.RemoteAddr(), err)
		return
	}
	server := connection.(*net.TCPConn)
	defer server.Close()

	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if _, err := io.Copy(client, server); err == nil {
			client.CloseWrite()
		}
		// The server has said all it had to say: what the client still sends has no receiver.
		client.SetReadDeadline(time.Now())
	}()
	if _, err := io.Copy(server, client); err == nil {
		server.CloseWrite()
	} else {
		server.Close()
	}
	<-answered
}
